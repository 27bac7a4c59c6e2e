/* Its init callback fails, unless the configuration says "Fail false". Its
 * reader ends the process when it is called although init has not succeeded. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

static const char *config_keys[] = {"Fail"};

static bool fail = true;
static bool ready;

static int badinit_config(const char *key, const char *value) {
  if (strcasecmp(key, "Fail") != 0)
    return -1;

  fail = IS_TRUE(value);
  return 0;
}

static int badinit_init(void) {
  if (fail)
    return -1;

  ready = true;
  return 0;
}

static int badinit_read(void) {
  if (!ready)
    abort();

  return dispatch_count("badinit", "", 1);
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("badinit", badinit_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("badinit", badinit_init);
  plugin_register_read("badinit", badinit_read);
}
