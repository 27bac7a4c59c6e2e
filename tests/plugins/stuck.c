/* One of its functions, the one named by "Hang", does not return for a while:
 * "config", "init", "flush", "shutdown", "notification", "free function of a
 * callback" or "free function of a read callback". Before it has a
 * configuration, and when it has none any more, files say so:
 * "hang-in-constructor", "hang-in-module-register" and "hang-in-destructor".
 * Says in the log which of its functions are called. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"
#include "wait_for_release.h"

static const char *config_keys[] = {WAIT_FOR_RELEASE_KEYS, "Hang", "Then"};

static char hang[64];

static void hang_if_there_is(const char *file) {
  if (access(file, F_OK) != 0)
    return;

  sstrncpy(entered, "entered", sizeof(entered));
  sstrncpy(release, "release", sizeof(release));
  wait_for_release();
}

static void __attribute__((constructor)) stuck_constructor(void) {
  hang_if_there_is("hang-in-constructor");
}

static void __attribute__((destructor)) stuck_destructor(void) {
  hang_if_there_is("hang-in-destructor");
}

static int enter(const char *function) {
  INFO("stuck plugin: %s runs.", function);

  return (strcmp(hang, function) == 0) ? wait_for_release() : 0;
}

static int stuck_config(const char *key, const char *value) {
  if (strcasecmp(key, "Hang") == 0) {
    sstrncpy(hang, value, sizeof(hang));
    return enter("config");
  }
  if (strcasecmp(key, "Then") == 0)
    return enter("the next config");

  return wait_for_release_config(key, value);
}

static int stuck_init(void) { return enter("init"); }

static int stuck_next_init(void) { return enter("the next init"); }

static int stuck_read(user_data_t *ud) {
  return dispatch_count("stuck", "", 1);
}

static void stuck_free_read(void *data) {
  enter("free function of a read callback");
  free(data);
}

static int stuck_flush(cdtime_t timeout, const char *identifier,
                       user_data_t *ud) {
  return enter("flush");
}

static int stuck_notification(const notification_t *n, user_data_t *ud) {
  return (strstr(n->message, "PleaseHang") != NULL) ? enter("notification") : 0;
}

static int stuck_shutdown(void) { return enter("shutdown"); }

static int stuck_write(const data_set_t *ds, const value_list_t *vl,
                       user_data_t *ud) {
  return 0;
}

static void stuck_free(void *data) {
  enter("free function of a callback");
  free(data);
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);

  hang_if_there_is("hang-in-module-register");

  plugin_register_config("stuck", stuck_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("stuck", stuck_init);
  plugin_register_init("stuck-next", stuck_next_init);
  user_data_t ud = {.data = malloc(8), .free_func = stuck_free_read};
  plugin_register_complex_read(/* group = */ NULL, "stuck", stuck_read,
                               /* interval = */ 0, &ud);
  plugin_register_flush("stuck", stuck_flush, /* user_data = */ NULL);
  plugin_register_notification("stuck", stuck_notification,
                               /* user_data = */ NULL);
  plugin_register_shutdown("stuck", stuck_shutdown);
  ud = (user_data_t){.data = malloc(8), .free_func = stuck_free};
  plugin_register_write("stuck", stuck_write, &ud);
}
