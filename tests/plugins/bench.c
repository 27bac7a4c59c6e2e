/* For benchmarks: dispatches a number of values as fast as it can, and has a
 * number of writers that do nothing. When the last value is written it creates
 * a file. Uses nothing but what stock has: one binary serves both daemons. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"Values", "Writers", "FillFirst", "Once",
                                    "Done"};

static int values_num = 1000;
static int writers_num = 1;
/* Dispatches without being flushed, and only once. */
static bool once;
/* All values are in the queue before the first one is written. */
static bool fill_first;
static char *done_file;

/* Set by a flush, and cleared by the reader that dispatches. */
static bool flushed;

/* Held while the queue is filled. */
static pthread_mutex_t fill_lock = PTHREAD_MUTEX_INITIALIZER;

static int bench_config(const char *key, const char *value) {
  if (strcasecmp(key, "Values") == 0)
    values_num = atoi(value);
  else if (strcasecmp(key, "Writers") == 0)
    writers_num = atoi(value);
  else if (strcasecmp(key, "FillFirst") == 0)
    fill_first = IS_TRUE(value);
  else if (strcasecmp(key, "Once") == 0)
    once = IS_TRUE(value);
  else if (strcasecmp(key, "Done") == 0)
    done_file = strdup(value);
  else
    return -1;
  return 0;
}

static int bench_write(__attribute__((unused)) const data_set_t *ds,
                       __attribute__((unused)) const value_list_t *vl,
                       __attribute__((unused)) user_data_t *ud) {
  return 0;
}

/* The last of the writers: counts. */
static int bench_write_last(__attribute__((unused)) const data_set_t *ds,
                            const value_list_t *vl,
                            __attribute__((unused)) user_data_t *ud) {
  static int written;

  if (strcmp(vl->plugin, "bench") != 0)
    return 0;

  if (fill_first) {
    pthread_mutex_lock(&fill_lock);
    pthread_mutex_unlock(&fill_lock);
  }

  if (__atomic_add_fetch(&written, 1, __ATOMIC_RELAXED) < values_num)
    return 0;
  written = 0;

  FILE *fh = fopen(done_file, "w");
  return (fh != NULL) ? fclose(fh) : -1;
}

static int bench_flush(__attribute__((unused)) cdtime_t timeout,
                       __attribute__((unused)) const char *identifier,
                       __attribute__((unused)) user_data_t *ud) {
  __atomic_store_n(&flushed, true, __ATOMIC_RELEASE);
  return 0;
}

static int bench_read(__attribute__((unused)) user_data_t *ud) {
  if (!__atomic_exchange_n(&flushed, false, __ATOMIC_ACQ_REL))
    return 0;

  if (fill_first)
    pthread_mutex_lock(&fill_lock);

  value_t value = {.gauge = 0};
  value_list_t vl = VALUE_LIST_INIT;
  vl.values = &value;
  vl.values_len = 1;
  vl.time = cdtime();
  sstrncpy(vl.plugin, "bench", sizeof(vl.plugin));
  sstrncpy(vl.type, "count", sizeof(vl.type));

  for (int i = 0; i < values_num; i++) {
    value.gauge = i;
    /* A hundred series, each with a time that grows. */
    ssnprintf(vl.type_instance, sizeof(vl.type_instance), "%02d", i % 100);
    vl.time++;
    plugin_dispatch_values(&vl);
  }

  if (fill_first)
    pthread_mutex_unlock(&fill_lock);
  return 0;
}

static int bench_init(void) {
  char name[32];

  for (int i = 0; i < writers_num; i++) {
    ssnprintf(name, sizeof(name), "bench-%d", i);
    plugin_register_write(
        name, (i + 1 < writers_num) ? bench_write : bench_write_last,
        /* user_data = */ NULL);
  }

  plugin_register_flush("bench", bench_flush, /* user_data = */ NULL);
  flushed = once;
  return plugin_register_complex_read(
      /* group = */ NULL, "bench", bench_read,
      once ? TIME_T_TO_CDTIME_T(3600) : MS_TO_CDTIME_T(10),
      /* user_data = */ NULL);
}

void module_register(void) {
  plugin_register_config("bench", bench_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("bench", bench_init);
}
