/* Logs what the missing callback and the cache event callback learn of values
 * that expire. Not unloadable. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"
#include "utils_cache.h"

static int expiry_missing(const value_list_t *vl, user_data_t *ud) {
  char name[6 * DATA_MAX_NAME_LEN];
  if (FORMAT_VL(name, sizeof(name), vl) != 0)
    return -1;

  INFO("expiry plugin: missing %s", name);
  return 0;
}

static int expiry_event(cache_event_t *event, user_data_t *ud) {
  if (event->type == CE_VALUE_NEW)
    event->ret = 1;
  else if (event->type == CE_VALUE_EXPIRED)
    INFO("expiry plugin: expired %s", event->value_list_name);
  return 0;
}

void module_register(void) {
  plugin_register_missing("expiry", expiry_missing, /* user_data = */ NULL);
  plugin_register_cache_event("expiry", expiry_event, /* user_data = */ NULL);
}
