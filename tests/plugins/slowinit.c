/* Its init callback creates the file "Entered" and then does not return until
 * the file "Release" exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "wait_for_release.h"

static const char *config_keys[] = {WAIT_FOR_RELEASE_KEYS};

static int slowinit_init(void) {
  int status = wait_for_release();
  if (status != 0)
    return status;

  INFO("slowinit plugin: The init callback returns.");
  return 0;
}

void module_register(void) {
  plugin_register_config("slowinit", wait_for_release_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("slowinit", slowinit_init);
}
