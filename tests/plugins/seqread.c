/* Dispatches 0, 1, 2 … so that a writer can tell whether a value was lost,
 * doubled or late. Not unloadable: it plays one of the others that must never
 * notice what happens to another plugin. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

static const char *config_keys[] = {"Interval", "Log"};

static cdtime_t interval;
static bool log_each;

static int seqread_config(const char *key, const char *value) {
  if (strcasecmp(key, "Interval") == 0)
    interval = DOUBLE_TO_CDTIME_T(atof(value));
  else if (strcasecmp(key, "Log") == 0)
    log_each = IS_TRUE(value);
  else
    return -1;
  return 0;
}

static int seqread_read(__attribute__((unused)) user_data_t *ud) {
  static uint64_t next;

  int status = dispatch_count("seqread", "", (gauge_t)next);
  if (log_each)
    INFO("seqread plugin: Dispatched number %" PRIu64 ".", next);
  next++;
  return status;
}

static int seqread_init(void) {
  return plugin_register_complex_read(/* group = */ NULL, "seqread",
                                      seqread_read, interval,
                                      /* user_data = */ NULL);
}

void module_register(void) {
  plugin_register_config("seqread", seqread_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("seqread", seqread_init);
}
