/* Its thread outlives the shutdown callback: it then registers a reader and
 * unregisters it again. The reader's free function creates the file "Entered"
 * and does not return until the file "Release" exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <poll.h>
#include <stdatomic.h>

#include "wait_for_release.h"

static const char *config_keys[] = {WAIT_FOR_RELEASE_KEYS};

static atomic_bool shut_down;

static void slow_free(void *data) {
  wait_for_release();
  free(data);
}

static int late_read(user_data_t *ud) { return 0; }

static void *latefree_thread(void *arg) {
  while (!atomic_load(&shut_down))
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 1);

  user_data_t ud = {.data = malloc(8), .free_func = slow_free};
  plugin_register_complex_read(/* group = */ NULL, "latefree", late_read,
                               /* interval = */ 0, &ud);
  plugin_unregister_read("latefree");
  return NULL;
}

static int latefree_init(void) {
  pthread_t thread;
  int status =
      plugin_thread_create(&thread, latefree_thread, /* arg = */ NULL, "late");
  return (status != 0) ? status : pthread_detach(thread);
}

static int latefree_shutdown(void) {
  atomic_store(&shut_down, true);
  return 0;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_config("latefree", wait_for_release_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("latefree", latefree_init);
  plugin_register_shutdown("latefree", latefree_shutdown);
}
