/* Its init callback registers itself again, and says each time that it ran. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static int reinit_init(void) {
  static int runs;
  runs++;
  INFO("reinit plugin: The init callback runs.");
  /* An end to it, so that a daemon that goes on and on can tell of it. */
  if (runs >= 5)
    return 0;

  return plugin_register_init("reinit", reinit_init);
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_init("reinit", reinit_init);
}
