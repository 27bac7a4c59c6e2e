/* Feeds the storm: dispatches 0, 1, 2 … in several series as fast as the
 * writers take them, but never a number that is "Window" or more ahead of one
 * that is still on its way. So a writer that comes or goes in between can tell
 * which numbers it must have seen: all but the first and last "Window".
 *
 * A number has arrived when the write thread that has passed it to this
 * plugin's own writer comes back with another one: then it has been passed to
 * all others, too.
 *
 * When the file "Stop" exists nothing more is dispatched, and as soon as
 * everything has arrived, how many numbers each series had is written to the
 * file "Stop".done. Not unloadable: it must never notice what happens to
 * others. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

#include <fcntl.h>

#define SERIES_MAX 16
#define WINDOW_MAX 1024
#define WRITERS_MAX 64

/* Of this type instance are values that only keep the write threads moving. */
#define KICK "kick"

static const char *config_keys[] = {"Burst", "Interval", "Series", "Window",
                                    "Stop"};

static size_t burst = 10;
static size_t series_num = 4;
static uint64_t window = 256;
static cdtime_t interval;
static char *stop_file;

typedef struct {
  uint64_t next; /* to be dispatched */
  uint64_t low;  /* the lowest that has not been passed to the writer */
  bool passed[WINDOW_MAX];
} series_t;

/* The number that a write thread has been busy with last. */
typedef struct {
  bool used;
  size_t series;
  uint64_t number;
} writer_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* all of these */
static series_t series[SERIES_MAX];
static writer_t writers[WRITERS_MAX];
static size_t writers_num;
static bool done;

static __thread writer_t *self;

static int feed_config(const char *key, const char *value) {
  if (strcasecmp(key, "Burst") == 0)
    burst = (size_t)atoi(value);
  else if (strcasecmp(key, "Interval") == 0)
    interval = DOUBLE_TO_CDTIME_T(atof(value));
  else if (strcasecmp(key, "Series") == 0)
    series_num = (size_t)atoi(value);
  else if (strcasecmp(key, "Window") == 0)
    window = (uint64_t)atoi(value);
  else if (strcasecmp(key, "Stop") == 0)
    stop_file = sstrdup(value);
  else
    return -1;

  return 0;
}

/* The lowest number that has not arrived. */
static uint64_t on_its_way(size_t s) {
  uint64_t low = series[s].low;

  for (size_t i = 0; i < writers_num; i++)
    if (writers[i].used && (writers[i].series == s) &&
        (writers[i].number < low))
      low = writers[i].number;

  return low;
}

static bool all_arrived(void) {
  for (size_t s = 0; s < series_num; s++)
    if (on_its_way(s) != series[s].next)
      return false;

  return true;
}

static int write_done(void) {
  char path[PATH_MAX];
  char new_path[PATH_MAX];
  ssnprintf(path, sizeof(path), "%s.done", stop_file);
  ssnprintf(new_path, sizeof(new_path), "%s.new", stop_file);

  FILE *file = fopen(new_path, "w");
  if (file == NULL)
    return -1;
  for (size_t s = 0; s < series_num; s++)
    fprintf(file, "%zu %" PRIu64 "\n", s, series[s].next);

  return (fclose(file) == 0) ? rename(new_path, path) : -1;
}

static int feed_read(user_data_t *ud) {
  size_t s = (size_t)((series_t *)ud->data - series);
  bool stop = (access(stop_file, F_OK) == 0);
  char name[16];
  ssnprintf(name, sizeof(name), "%zu", s);

  bool blocked = false;
  for (size_t i = 0; (i < burst) && !stop && !blocked; i++) {
    /* Only this thread changes `next'. */
    pthread_mutex_lock(&lock);
    uint64_t number = series[s].next;
    blocked = (number >= on_its_way(s) + window);
    if (!blocked)
      series[s].next++;
    pthread_mutex_unlock(&lock);

    if (!blocked && (dispatch_count("stormfeed", name, (gauge_t)number) != 0))
      return -1;
  }

  pthread_mutex_lock(&lock);
  int status = 0;
  if (stop && !done && all_arrived()) {
    status = write_done();
    done = true;
  }
  bool kick = !done && (stop || blocked);
  pthread_mutex_unlock(&lock);

  if ((status == 0) && kick)
    status = dispatch_count("stormfeed", KICK, 0);
  return status;
}

static void pass(size_t s, uint64_t number) {
  series_t *it = series + s;

  it->passed[number % WINDOW_MAX] = true;
  while (it->passed[it->low % WINDOW_MAX]) {
    it->passed[it->low % WINDOW_MAX] = false;
    it->low++;
  }
}

static int feed_write(const data_set_t *ds, const value_list_t *vl,
                      user_data_t *ud) {
  if (strcmp(vl->plugin, "stormfeed") != 0)
    return 0;

  pthread_mutex_lock(&lock);
  if ((self == NULL) && (writers_num < WRITERS_MAX))
    self = writers + writers_num++;
  if (self == NULL)
    abort(); /* more write threads than this plugin can tell apart */

  self->used = (strcmp(vl->type_instance, KICK) != 0);
  if (self->used) {
    self->series = (size_t)atoi(vl->type_instance);
    self->number = (uint64_t)vl->values[0].gauge;
    pass(self->series, self->number);
  }
  pthread_mutex_unlock(&lock);

  return 0;
}

static int feed_init(void) {
  if ((stop_file == NULL) || (series_num > SERIES_MAX) || (window > WINDOW_MAX))
    return -1;

  for (size_t s = 0; s < series_num; s++) {
    char name[DATA_MAX_NAME_LEN];
    ssnprintf(name, sizeof(name), "stormfeed-%zu", s);
    user_data_t ud = {.data = series + s};
    int status = plugin_register_complex_read("stormfeed", name, feed_read,
                                              interval, &ud);
    if (status != 0)
      return status;
  }

  return 0;
}

static int feed_shutdown(void) {
  sfree(stop_file);
  return 0;
}

void module_register(void) {
  plugin_register_config("stormfeed", feed_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("stormfeed", feed_init);
  plugin_register_write("stormfeed", feed_write, /* user_data = */ NULL);
  plugin_register_shutdown("stormfeed", feed_shutdown);
}
