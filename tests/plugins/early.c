/* Registers every kind of callback in module_register() and ends the process
 * when one of them is called outside of READY: before configuration and init
 * are complete, or after shutdown has begun. Its reader reports how often each
 * kind was called. To be loaded at run time only: at start-up, log and
 * notification callbacks run from their registration on. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

#include <stdatomic.h>

enum phase { REGISTERED, RUNNING, DOWN };

enum kind {
  READ,
  WRITE,
  FLUSH,
  NOTIFICATION,
  LOG,
  MISSING,
  CACHE_EVENT,
  KINDS
};

static const char *const kind_names[KINDS] = {
    "read", "write", "flush", "notification", "log", "missing", "cache_event",
};

/* "Delay" is how many seconds the configuration takes. */
static const char *config_keys[] = {"Delay"};

static _Atomic enum phase phase;
static atomic_uint calls[KINDS];

/* Written on purpose without plugin_log(): a log callback calls this. */
static void enter(enum kind kind) {
  enum phase now = atomic_load(&phase);
  if (now != RUNNING) {
    fprintf(stderr, "early plugin: The %s callback was called in phase %d.\n",
            kind_names[kind], (int)now);
    abort();
  }
  atomic_fetch_add(&calls[kind], 1);
}

static void expect_phase(enum phase expected, const char *callback) {
  enum phase now = atomic_load(&phase);
  if (now != expected) {
    fprintf(stderr, "early plugin: %s was called in phase %d.\n", callback,
            (int)now);
    abort();
  }
}

/* This wait is the fault that the test injects: a slow configuration. */
static void take_time(double seconds) {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t never = PTHREAD_COND_INITIALIZER;
  struct timespec until =
      CDTIME_T_TO_TIMESPEC(cdtime() + DOUBLE_TO_CDTIME_T(seconds));

  pthread_mutex_lock(&lock);
  while (pthread_cond_timedwait(&never, &lock, &until) != ETIMEDOUT)
    ; /* woken for nothing */
  pthread_mutex_unlock(&lock);
}

static int early_config(const char *key, const char *value) {
  expect_phase(REGISTERED, "The configuration callback");
  if (strcasecmp(key, "Delay") != 0)
    return -1;

  take_time(atof(value));
  return 0;
}

static int early_init(void) {
  expect_phase(REGISTERED, "The init callback");
  atomic_store(&phase, RUNNING);
  return 0;
}

static int early_read(void) {
  enter(READ);

  int status = 0;
  for (int i = 0; i < KINDS; i++) {
    gauge_t number = (gauge_t)atomic_load(&calls[i]);
    if (dispatch_count("early", kind_names[i], number) != 0)
      status = -1;
  }
  return status;
}

static int early_write(const data_set_t *ds, const value_list_t *vl,
                       user_data_t *ud) {
  enter(WRITE);
  return 0;
}

static int early_flush(cdtime_t timeout, const char *identifier,
                       user_data_t *ud) {
  enter(FLUSH);
  return 0;
}

static int early_notification(const notification_t *n, user_data_t *ud) {
  enter(NOTIFICATION);
  return 0;
}

static void early_log(int severity, const char *message, user_data_t *ud) {
  enter(LOG);
}

static int early_missing(const value_list_t *vl, user_data_t *ud) {
  enter(MISSING);
  return 0;
}

static int early_cache_event(cache_event_t *event, user_data_t *ud) {
  enter(CACHE_EVENT);
  event->ret = 1; /* UPDATE and EXPIRED events are wanted, too. */
  return 0;
}

static int early_shutdown(void) {
  expect_phase(RUNNING, "The shutdown callback");
  atomic_store(&phase, DOWN);
  return 0;
}

/* Each registration owns a piece of memory, so that a leak checker sees whether
 * it is freed, once, and after the last call. */
static user_data_t own(void) {
  return (user_data_t){.data = malloc(1), .free_func = free};
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("early", early_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("early", early_init);
  plugin_register_read("early", early_read);
  plugin_register_shutdown("early", early_shutdown);

  user_data_t ud = own();
  plugin_register_write("early", early_write, &ud);
  ud = own();
  plugin_register_flush("early", early_flush, &ud);
  ud = own();
  plugin_register_notification("early", early_notification, &ud);
  ud = own();
  plugin_register_log("early", early_log, &ud);
  ud = own();
  plugin_register_missing("early", early_missing, &ud);
  ud = own();
  plugin_register_cache_event("early", early_cache_event, &ud);
}
