/* Passes on each notification to syslog(3), as libraries do that have something
 * to say. What the C library writes in front of it others have given it. */

#include "collectd.h"

#include "plugin.h"

#include <syslog.h>

static int talkative_notification(const notification_t *n,
                                  __attribute__((unused)) user_data_t *ud) {
  syslog(LOG_DAEMON | LOG_DEBUG, "%s", n->message);
  return 0;
}

void module_register(void) {
  plugin_register_notification("talkative", talkative_notification,
                               /* user_data = */ NULL);
}
