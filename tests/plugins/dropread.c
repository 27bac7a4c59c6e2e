/* Has two readers, and unregisters one of them at the notification "drop". */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static int dropread_read(user_data_t *ud) { return 0; }

static int dropread_notification(const notification_t *n, user_data_t *ud) {
  if (strcmp(n->message, "drop") != 0)
    return 0;

  INFO("dropread plugin: One reader is dropped.");
  return plugin_unregister_read("dropread-1");
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_complex_read(/* group = */ NULL, "dropread-0", dropread_read,
                               /* interval = */ 0, /* user_data = */ NULL);
  plugin_register_complex_read(/* group = */ NULL, "dropread-1", dropread_read,
                               /* interval = */ 0, /* user_data = */ NULL);
  plugin_register_notification("dropread", dropread_notification,
                               /* user_data = */ NULL);
}
