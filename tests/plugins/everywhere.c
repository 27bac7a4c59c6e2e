/* Registers callbacks of every kind, a match and a target under the name
 * "Name", and a type, where "Where" says: in "config", in "init", in a
 * "callback" for notifications that runs while the plugin is ready, or in a
 * "thread". "Twice true" registers each a second time, "Tidy true" has a
 * shutdown callback unregister all of them. A reader of its own reports how
 * often each kind was called. */

#include "collectd.h"

#include "filter_chain.h"
#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

#include <stdatomic.h>

enum kind {
  INIT,
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
    "init",         "read", "write",   "flush",
    "notification", "log",  "missing", "cache_event",
};

/* "Where" has to be the last one. */
static const char *config_keys[] = {"Name", "Twice", "Tidy", "Where"};

static char name[DATA_MAX_NAME_LEN] = "everywhere";
static char where[DATA_MAX_NAME_LEN];
static bool twice;
static bool tidy;
static atomic_bool called;

static pthread_t thread;
static bool have_thread;

static atomic_uint calls[KINDS];

static int count(enum kind kind) {
  atomic_fetch_add(&calls[kind], 1);
  return 0;
}

static int count_init(void) { return count(INIT); }

static int count_read(user_data_t *ud) { return count(READ); }

static int count_write(const data_set_t *ds, const value_list_t *vl,
                       user_data_t *ud) {
  return count(WRITE);
}

static int count_flush(cdtime_t timeout, const char *identifier,
                       user_data_t *ud) {
  return count(FLUSH);
}

static int count_notification(const notification_t *n, user_data_t *ud) {
  return count(NOTIFICATION);
}

static void count_log(int severity, const char *message, user_data_t *ud) {
  count(LOG);
}

static int count_missing(const value_list_t *vl, user_data_t *ud) {
  return count(MISSING);
}

static int count_cache_event(cache_event_t *event, user_data_t *ud) {
  event->ret = 1; /* UPDATE and EXPIRED events are wanted, too. */
  return count(CACHE_EVENT);
}

/* Written without plugin_log() on purpose: it is no log message that counts. */
static int note_shutdown(void) {
  FILE *fh = fopen("everywhere-shutdown", "a");
  if (fh == NULL)
    return -1;
  fputc('.', fh);
  return fclose(fh);
}

/* Each registration owns a piece of memory, so that a leak checker sees whether
 * it is freed, once, and after the last call. */
static user_data_t own(void) {
  return (user_data_t){.data = malloc(1), .free_func = free};
}

static int next_config(const char *key, const char *value) { return -1; }

static int complex_config(oconfig_item_t *ci) { return 0; }

static int match_nothing(const data_set_t *ds, const value_list_t *vl,
                         notification_meta_t **meta, void **user_data) {
  return FC_MATCH_NO_MATCH;
}

static int leave_alone(const data_set_t *ds, value_list_t *vl,
                       notification_meta_t **meta, void **user_data) {
  return FC_TARGET_CONTINUE;
}

/* Two readers that only the name of their group is known of. */
static void register_group(void) {
  char member[DATA_MAX_NAME_LEN + 16];

  for (int i = 0; i < 2; i++) {
    user_data_t ud = own();
    ssnprintf(member, sizeof(member), "%s/member %i", name, i);
    plugin_register_complex_read("everywhere group", member, count_read,
                                 /* interval = */ 0, &ud);
  }
}

static void register_type(void) {
  data_source_t source = {
      .name = "value", .type = DS_TYPE_GAUGE, .min = NAN, .max = NAN};
  data_set_t set = {.type = "everywhere", .ds_num = 1, .ds = &source};

  plugin_register_data_set(&set);
}

static void register_all(void) {
  user_data_t ud;

  plugin_register_init(name, count_init);
  ud = own();
  plugin_register_complex_read(/* group = */ NULL, name, count_read,
                               /* interval = */ 0, &ud);
  ud = own();
  plugin_register_write(name, count_write, &ud);
  ud = own();
  plugin_register_flush(name, count_flush, &ud);
  ud = own();
  plugin_register_notification(name, count_notification, &ud);
  ud = own();
  plugin_register_log(name, count_log, &ud);
  ud = own();
  plugin_register_missing(name, count_missing, &ud);
  ud = own();
  plugin_register_cache_event(name, count_cache_event, &ud);
  plugin_register_shutdown(name, note_shutdown);
  /* The configuration is complete, this must not be called. */
  plugin_register_config(name, next_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));

  char other[DATA_MAX_NAME_LEN + 16];
  ssnprintf(other, sizeof(other), "%s/complex", name);
  plugin_register_complex_config(other, complex_config);
  fc_register_match(name, (match_proc_t){.match = match_nothing});
  fc_register_target(name, (target_proc_t){.invoke = leave_alone});
  register_group();
  register_type();
}

/* Readers are gone when a shutdown callback is called. */
static void unregister_all(void) {
  char other[DATA_MAX_NAME_LEN + 16];
  ssnprintf(other, sizeof(other), "%s/complex", name);

  int failed =
      plugin_unregister_init(name) + plugin_unregister_write(name) +
      plugin_unregister_flush(name) + plugin_unregister_notification(name) +
      plugin_unregister_log(name) + plugin_unregister_missing(name) +
      plugin_unregister_cache_event(name) +
      plugin_unregister_shutdown("everywhere-own") +
      plugin_unregister_config(name) + plugin_unregister_complex_config(other) +
      plugin_unregister_data_set("everywhere");
  if (failed == 0)
    INFO("everywhere plugin: Everything is unregistered.");
}

static void register_once_or_twice(void) {
  register_all();
  if (twice)
    register_all();
  INFO("everywhere plugin: Everything is registered.");
}

static int everywhere_config(const char *key, const char *value) {
  if (strcasecmp(key, "Name") == 0) {
    sstrncpy(name, value, sizeof(name));
  } else if (strcasecmp(key, "Twice") == 0) {
    twice = IS_TRUE(value);
  } else if (strcasecmp(key, "Tidy") == 0) {
    tidy = IS_TRUE(value);
  } else {
    sstrncpy(where, value, sizeof(where));
    if (strcmp(where, "config") == 0)
      register_once_or_twice();
  }

  return 0;
}

static void *everywhere_thread(void *arg) {
  register_once_or_twice();
  return NULL;
}

static int everywhere_init(void) {
  if (strcmp(where, "init") == 0)
    register_once_or_twice();
  if (strcmp(where, "thread") != 0)
    return 0;

  int status = plugin_thread_create(&thread, everywhere_thread,
                                    /* arg = */ NULL, "register");
  have_thread = (status == 0);
  return status;
}

static int everywhere_notification(const notification_t *n, user_data_t *ud) {
  if ((strcmp(where, "callback") == 0) && !atomic_exchange(&called, true))
    register_once_or_twice();
  return 0;
}

static int everywhere_read(void) {
  int status = 0;
  for (int i = 0; i < KINDS; i++) {
    gauge_t number = (gauge_t)atomic_load(&calls[i]);
    if (dispatch_count("everywhere", kind_names[i], number) != 0)
      status = -1;
  }
  return status;
}

static int everywhere_shutdown(void) {
  if (have_thread)
    pthread_join(thread, /* retval = */ NULL);
  have_thread = false;
  if (tidy)
    unregister_all();
  return 0;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("everywhere", everywhere_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("everywhere-own", everywhere_init);
  plugin_register_read("everywhere-own", everywhere_read);
  plugin_register_notification("everywhere-own", everywhere_notification,
                               /* user_data = */ NULL);
  plugin_register_shutdown("everywhere-own", everywhere_shutdown);
}
