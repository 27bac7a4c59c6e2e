/* Asks for operations on plugins in its own callbacks and logs the answers: in
 * init to load the plugin "Load", if one is given, and in the notification
 * callback to unload itself, if the message has the text "Trigger" in it. */

#include "collectd.h"

#include "plugin.h"
#include "plugin_lifecycle.h"
#include "utils/common/common.h"

static const char *config_keys[] = {"Load", "Trigger"};

static char *load;
static char *trigger;

static int selfcall_config(const char *key, const char *value) {
  char **option;
  if (strcasecmp(key, "Load") == 0)
    option = &load;
  else if (strcasecmp(key, "Trigger") == 0)
    option = &trigger;
  else
    return -1;

  free(*option);
  *option = sstrdup(value);
  return 0;
}

static int selfcall_init(void) {
  if (load == NULL)
    return 0;

  char msg[1024] = "";
  int status = plugin_lifecycle_load(load, /* opts = */ NULL, msg, sizeof(msg));
  INFO("selfcall plugin: load: %s: %s", STRERROR(status), msg);
  return 0;
}

static int selfcall_notification(const notification_t *n, user_data_t *ud) {
  if ((trigger == NULL) || (strstr(n->message, trigger) == NULL))
    return 0;

  char msg[1024] = "";
  int status =
      plugin_lifecycle_unload("selfcall", /* timeout = */ 0, msg, sizeof(msg));
  INFO("selfcall plugin: unload: %s: %s", STRERROR(status), msg);
  return 0;
}

static int selfcall_shutdown(void) {
  sfree(load);
  sfree(trigger);
  return 0;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("selfcall", selfcall_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("selfcall", selfcall_init);
  plugin_register_notification("selfcall", selfcall_notification,
                               /* user_data = */ NULL);
  plugin_register_shutdown("selfcall", selfcall_shutdown);
}
