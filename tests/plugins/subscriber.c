/* Subscribes to the cache events of every new value, unless told not to, and
 * logs those that only subscribers get. Can be unloaded. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"Subscribe"};

static bool subscribe = true;

static int subscriber_config(const char *key, const char *value) {
  if (strcasecmp(key, "Subscribe") != 0)
    return -1;

  subscribe = IS_TRUE(value);
  return 0;
}

static int subscriber_event(cache_event_t *event, user_data_t *ud) {
  if (event->type == CE_VALUE_NEW)
    event->ret = subscribe ? 1 : 0;
  else
    INFO("subscriber plugin: An event of %s.", event->value_list_name);
  return 0;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("subscriber", subscriber_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_cache_event("subscriber", subscriber_event,
                              /* user_data = */ NULL);
}
