/* Refuses "Refuse true". "Number" is what its reader reports. Init and reader
 * end the process when they are called after a refusal. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

static const char *config_keys[] = {"Number", "Refuse"};

static gauge_t number;
static bool refused;

static int badconfig_config(const char *key, const char *value) {
  if (strcasecmp(key, "Refuse") == 0)
    refused = IS_TRUE(value);
  else if (strcasecmp(key, "Number") == 0)
    number = atof(value);
  else
    return -1;

  return refused ? 1 : 0;
}

static int badconfig_init(void) {
  if (refused)
    abort();
  return 0;
}

static int badconfig_read(void) {
  if (refused)
    abort();

  return dispatch_count("badconfig", "", number);
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("badconfig", badconfig_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("badconfig", badconfig_init);
  plugin_register_read("badconfig", badconfig_read);
}
