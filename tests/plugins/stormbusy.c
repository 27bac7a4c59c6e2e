/* Does everything that a plugin can do, at once and all the time: its threads
 * dispatch values and notifications, log, flush, look into the cache, and
 * register and unregister callbacks of all kinds, while other callbacks of the
 * same kind run; running callbacks unregister themselves and register
 * themselves again.
 *
 * Each callback has memory of its own and ends the process if it is called with
 * memory that has been freed, or outside of READY. It may be installed under
 * several names. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"
#include "utils_cache.h"

#include "dispatch_count.h"

#include <stdatomic.h>

#define THREADS_MAX 8

static const char *config_keys[] = {"FailInit", "Refuse", "Threads"};

static char name[DATA_MAX_NAME_LEN];
static size_t threads_wanted = 2;
static bool fail_init;

static pthread_t threads[THREADS_MAX];
static size_t threads_num;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* stopping */
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static bool stopping;

/* Between init and shutdown. */
static atomic_bool ready;

/* What each callback owns. */
enum mark { ALIVE = 0x600d, FREED = 0xdead };

static user_data_t own(void);

static void check(user_data_t const *ud, const char *what) {
  enum mark mark = *(enum mark const *)ud->data;

  if ((mark != ALIVE) || !atomic_load(&ready)) {
    fprintf(stderr, "%s plugin: The %s callback was called, with %#x.\n", name,
            what, (unsigned int)mark);
    abort();
  }
}

static void free_mark(void *data) {
  enum mark *mark = data;

  if (*mark != ALIVE)
    abort();
  *mark = FREED;
  free(mark);
}

static user_data_t own(void) {
  enum mark *mark = malloc(sizeof(*mark));
  if (mark == NULL)
    abort();

  *mark = ALIVE;
  return (user_data_t){.data = mark, .free_func = free_mark};
}

static void append(char *buffer, size_t size, const char *suffix) {
  ssnprintf(buffer, size, "%s-%s", name, suffix);
}

static int busy_read(user_data_t *ud) {
  check(ud, "read");
  return dispatch_count(name, "", 1);
}

/* Takes itself off the list, and puts another one there. */
static int busy_read_once(user_data_t *ud) {
  char callback[DATA_MAX_NAME_LEN];
  check(ud, "read");
  append(callback, sizeof(callback), "once");

  plugin_unregister_read(callback);
  user_data_t other = own();
  return plugin_register_complex_read(name, callback, busy_read_once,
                                      /* interval = */ 0, &other);
}

static int busy_write(const data_set_t *ds, const value_list_t *vl,
                      user_data_t *ud) {
  check(ud, "write");
  return 0;
}

static int busy_write_once(const data_set_t *ds, const value_list_t *vl,
                           user_data_t *ud) {
  char callback[DATA_MAX_NAME_LEN];
  check(ud, "write");
  append(callback, sizeof(callback), "once");

  plugin_unregister_write(callback);
  check(ud, "write");
  user_data_t other = own();
  return plugin_register_write(callback, busy_write_once, &other);
}

static int busy_flush(cdtime_t timeout, const char *identifier,
                      user_data_t *ud) {
  /* The last flush is after the last value, so not checked as the others. */
  if (*(enum mark const *)ud->data != ALIVE)
    abort();
  return 0;
}

static int busy_missing(const value_list_t *vl, user_data_t *ud) {
  check(ud, "missing");
  return 0;
}

static int busy_cache_event(cache_event_t *event, user_data_t *ud) {
  check(ud, "cache event");
  event->ret = 1; /* UPDATE and EXPIRED events are wanted, too. */
  return 0;
}

static void busy_log(int severity, const char *message, user_data_t *ud) {
  check(ud, "log");
}

static int busy_notification(const notification_t *n, user_data_t *ud) {
  check(ud, "notification");
  return 0;
}

static void notify(void) {
  notification_t n = {.severity = NOTIF_OKAY, .time = cdtime()};
  sstrncpy(n.host, "testhost", sizeof(n.host));
  sstrncpy(n.plugin, name, sizeof(n.plugin));
  sstrncpy(n.message, "busy", sizeof(n.message));
  plugin_notification_meta_add_string(&n, "key", "value");
  plugin_dispatch_notification(&n);
  plugin_notification_meta_free(n.meta);
}

static void look_into_cache(void) {
  char **names = NULL;
  cdtime_t *times = NULL;
  size_t num = 0;

  if (uc_get_names(&names, &times, &num) != 0)
    return;
  for (size_t i = 0; i < num; i++) {
    gauge_t *values = NULL;
    size_t values_num = 0;
    if (uc_get_rate_by_name(names[i], &values, &values_num) == 0)
      sfree(values);
  }
  strarray_free(names, num);
  sfree(times);
}

static void register_some(const char *callback) {
  user_data_t ud = own();
  plugin_register_write(callback, busy_write, &ud);
  ud = own();
  plugin_register_missing(callback, busy_missing, &ud);
  ud = own();
  plugin_register_cache_event(callback, busy_cache_event, &ud);
  ud = own();
  plugin_register_notification(callback, busy_notification, &ud);
  ud = own();
  plugin_register_log(callback, busy_log, &ud);
  ud = own();
  plugin_register_flush(callback, busy_flush, &ud);
  ud = own();
  plugin_register_complex_read(name, callback, busy_read, /* interval = */ 0,
                               &ud);
}

static void unregister_some(const char *callback) {
  plugin_unregister_write(callback);
  plugin_unregister_missing(callback);
  plugin_unregister_cache_event(callback);
  plugin_unregister_notification(callback);
  plugin_unregister_log(callback);
  plugin_unregister_flush(callback);
  plugin_unregister_read(callback);
}

/* Waits for a moment. Returns false when the thread is to end. */
static bool go_on(void) {
  struct timespec until = CDTIME_T_TO_TIMESPEC(cdtime() + MS_TO_CDTIME_T(5));

  pthread_mutex_lock(&lock);
  if (!stopping)
    pthread_cond_timedwait(&cond, &lock, &until);
  bool ret = !stopping;
  pthread_mutex_unlock(&lock);

  return ret;
}

static void *busy_thread(void *arg) {
  size_t number = (size_t)((pthread_t *)arg - threads);
  char suffix[16];
  char callback[DATA_MAX_NAME_LEN];
  ssnprintf(suffix, sizeof(suffix), "%zu", number);
  append(callback, sizeof(callback), suffix);

  for (unsigned int turn = 0; go_on(); turn++) {
    dispatch_count(name, suffix, turn);
    switch (turn % 8) {
    case 0:
      register_some(callback);
      break;
    case 2:
      notify();
      break;
    case 3:
      INFO("%s plugin: Thread %zu is in turn %u.", name, number, turn);
      break;
    case 4:
      look_into_cache();
      break;
    case 5:
      plugin_flush(name, /* timeout = */ 0, /* identifier = */ NULL);
      break;
    case 6:
      /* Those that are there are replaced. */
      register_some(callback);
      break;
    case 7:
      unregister_some(callback);
      break;
    }
  }

  return NULL;
}

static int busy_config(const char *key, const char *value) {
  if (strcasecmp(key, "FailInit") == 0)
    fail_init = IS_TRUE(value);
  else if (strcasecmp(key, "Refuse") == 0)
    return IS_TRUE(value) ? -1 : 0;
  else if (strcasecmp(key, "Threads") == 0)
    threads_wanted = (size_t)atoi(value);
  else
    return -1;

  return 0;
}

static int busy_init(void) {
  if (fail_init || (threads_wanted > THREADS_MAX))
    return -1;

  atomic_store(&ready, true);
  for (size_t i = 0; i < threads_wanted; i++) {
    int status =
        plugin_thread_create(threads + i, busy_thread, threads + i, name);
    if (status != 0)
      return status;
    threads_num++;
  }

  return 0;
}

static int busy_shutdown(void) {
  pthread_mutex_lock(&lock);
  stopping = true;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);

  while (threads_num > 0)
    pthread_join(threads[--threads_num], /* retval = */ NULL);

  atomic_store(&ready, false);
  return 0;
}

void module_register(void) {
  char once[DATA_MAX_NAME_LEN];

  plugin_register_unloadable(/* flags = */ 0);
  sstrncpy(name, plugin_get_ctx().name, sizeof(name));
  append(once, sizeof(once), "once");

  plugin_register_config(name, busy_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init(name, busy_init);
  plugin_register_shutdown(name, busy_shutdown);
  register_some(name);

  user_data_t ud = own();
  plugin_register_write(once, busy_write_once, &ud);
  ud = own();
  plugin_register_complex_read(name, once, busy_read_once, /* interval = */ 0,
                               &ud);
}
