/* Its read callback creates the file "Entered" and then does not return until
 * the file "Release" exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "wait_for_release.h"

static const char *config_keys[] = {WAIT_FOR_RELEASE_KEYS};

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("hang", wait_for_release_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_read("hang", wait_for_release);
}
