/* Its thread registers a thousand readers, says so, and goes on with one each
 * millisecond until the shutdown callback tells it to end. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <poll.h>
#include <stdatomic.h>

static pthread_t thread;
static atomic_bool stopping;

static int more_read(user_data_t *ud) { return 0; }

static void *more_thread(void *arg) {
  for (unsigned int i = 0; !atomic_load(&stopping); i++) {
    char name[DATA_MAX_NAME_LEN];
    ssnprintf(name, sizeof(name), "moreread-%u", i);

    user_data_t ud = {.data = malloc(8), .free_func = free};
    plugin_register_complex_read("moreread", name, more_read,
                                 /* interval = */ 0, &ud);
    if (i == 1000)
      INFO("moreread plugin: There are many readers.");
    if (i >= 1000)
      poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 1);
  }

  return NULL;
}

static int more_init(void) {
  return plugin_thread_create(&thread, more_thread, /* arg = */ NULL, "more");
}

static int more_shutdown(void) {
  atomic_store(&stopping, true);
  return pthread_join(thread, /* retval = */ NULL);
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_init("moreread", more_init);
  plugin_register_shutdown("moreread", more_shutdown);
}
