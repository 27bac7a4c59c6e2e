/* Has five readers. Each appends a byte to the file "Entered" and then does not
 * return until the file "Release" exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "wait_for_release.h"

static const char *config_keys[] = {WAIT_FOR_RELEASE_KEYS};

static int slowread_read(user_data_t *ud) { return wait_for_release(); }

void module_register(void) {
  plugin_register_config("slowread", wait_for_release_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  for (int i = 0; i < 5; i++) {
    char name[DATA_MAX_NAME_LEN];
    ssnprintf(name, sizeof(name), "slowread-%d", i);
    plugin_register_complex_read(/* group = */ NULL, name, slowread_read,
                                 /* interval = */ 0, /* user_data = */ NULL);
  }
}
