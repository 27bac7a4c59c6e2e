/* A writer that checks the numbers of stormfeed. They come in any order within
 * the window that stormfeed keeps to. Each number must come once; none may be
 * missing but, because the writer may come and go while the daemon runs, among
 * the first and the last "Window". "Complete true" is for a writer that is
 * there from start to end: it must see all from 0 on.
 *
 * At its shutdown it adds a line to the file "Report" for each series: "<name>
 * <series> <seen> <first> <last> <missing> <twice>". It may be installed under
 * several names. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>

#define SERIES_MAX 16
#define WINDOW_MAX 1024
/* A number that is this far behind the latest has arrived, if it ever will. */
#define RING (2 * WINDOW_MAX)

static const char *config_keys[] = {"Complete", "FailInit", "Refuse", "Report",
                                    "Window"};

static char name[DATA_MAX_NAME_LEN];
static char *report;
static uint64_t window = 256;
static bool complete;
static bool fail_init;

typedef struct {
  uint64_t seen;
  uint64_t first;
  uint64_t last;
  uint64_t missing;
  uint64_t twice; /* or much too late */
  uint64_t base;  /* the lowest number in the ring */
  bool ring[RING];
} series_t;

/* Each write callback has memory of its own, to see that it is not used after
 * it has been freed. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* series */
static series_t *series;

static int sink_config(const char *key, const char *value) {
  if (strcasecmp(key, "Complete") == 0)
    complete = IS_TRUE(value);
  else if (strcasecmp(key, "FailInit") == 0)
    fail_init = IS_TRUE(value);
  else if (strcasecmp(key, "Refuse") == 0)
    return IS_TRUE(value) ? -1 : 0;
  else if (strcasecmp(key, "Window") == 0)
    window = (uint64_t)atoi(value);
  else if (strcasecmp(key, "Report") == 0) {
    sfree(report);
    report = sstrdup(value);
  } else
    return -1;

  return 0;
}

/* Takes the lowest number out of the ring, for good. */
static void drop_lowest(series_t *it) {
  bool *seen = it->ring + (it->base % RING);
  uint64_t must_see = complete ? 0 : it->first + window;

  if (!*seen && (it->base >= must_see)) {
    it->missing++;
    ERROR("%s plugin: Number %" PRIu64 " of series %zu has not come.", name,
          it->base, (size_t)(it - series));
  }
  *seen = false;
  it->base++;
}

static void enter(series_t *it, uint64_t number) {
  if (it->seen == 0) {
    it->first = it->last = number;
    it->base = (complete || (number < window)) ? 0 : number - window;
  }

  while (number >= it->base + RING)
    drop_lowest(it);

  if ((number < it->base) || it->ring[number % RING]) {
    it->twice++;
    ERROR("%s plugin: Number %" PRIu64 " of series %zu has come %s.", name,
          number, (size_t)(it - series),
          (number < it->base) ? "much too late" : "twice");
    return;
  }

  it->ring[number % RING] = true;
  it->seen++;
  if (number < it->first)
    it->first = number;
  if (number > it->last)
    it->last = number;
}

static int sink_write(const data_set_t *ds, const value_list_t *vl,
                      user_data_t *ud) {
  if (*(char const *)ud->data != 'w')
    abort();
  if ((strcmp(vl->plugin, "stormfeed") != 0) ||
      !isdigit((unsigned char)vl->type_instance[0]))
    return 0;

  pthread_mutex_lock(&lock);
  enter(series + atoi(vl->type_instance), (uint64_t)vl->values[0].gauge);
  pthread_mutex_unlock(&lock);
  return 0;
}

static void free_mark(void *data) {
  *(char *)data = 'f';
  free(data);
}

static int sink_init(void) {
  if (fail_init || (report == NULL) || (window > WINDOW_MAX))
    return -1;

  series = calloc(SERIES_MAX, sizeof(*series));
  char *mark = malloc(1);
  if ((series == NULL) || (mark == NULL)) {
    free(mark);
    return -1;
  }

  *mark = 'w';
  return plugin_register_write(
      name, sink_write, &(user_data_t){.data = mark, .free_func = free_mark});
}

static int write_report(void) {
  int fd = open(report, O_APPEND | O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0)
    return -1;

  int status = 0;
  for (size_t s = 0; s < SERIES_MAX; s++) {
    series_t *it = series + s;
    if (it->seen == 0)
      continue;
    while (it->base + window < it->last)
      drop_lowest(it);

    char line[1024];
    int len = ssnprintf(
        line, sizeof(line),
        "%s %zu %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
        name, s, it->seen, it->first, it->last, it->missing, it->twice);
    if (swrite(fd, line, (size_t)len) != 0)
      status = -1;
  }

  return (close(fd) == 0) ? status : -1;
}

static int sink_shutdown(void) {
  int status = (series != NULL) ? write_report() : 0;

  sfree(series);
  sfree(report);
  return status;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  sstrncpy(name, plugin_get_ctx().name, sizeof(name));
  plugin_register_config(name, sink_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init(name, sink_init);
  plugin_register_shutdown(name, sink_shutdown);
}
