/* Its first init callback fails. Says in the log when its second one and its
 * notification callback are called. Cannot be unloaded. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "dispatch_count.h"

static int badstart_init(void) { return 42; }

static int badstart_next_init(void) {
  INFO("badstart plugin: The next init callback runs.");
  return 0;
}

static int badstart_read(void) { return dispatch_count("badstart", "", 1); }

static int badstart_notification(const notification_t *n, user_data_t *ud) {
  INFO("badstart plugin: The notification callback runs.");
  return 0;
}

void module_register(void) {
  plugin_register_init("badstart", badstart_init);
  plugin_register_init("badstart-next", badstart_next_init);
  plugin_register_read("badstart", badstart_read);
  plugin_register_notification("badstart", badstart_notification,
                               /* user_data = */ NULL);
}
