/* The free function of its writer takes a lock. When the writer is called for
 * the first time, a thread of the plugin unregisters it, lets it return, and
 * then registers a notification callback while it holds that lock. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <poll.h>
#include <stdatomic.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static atomic_bool writing;
static atomic_bool unregistered;
static atomic_bool returning;

static void wait_for(atomic_bool *flag) {
  while (!atomic_load(flag))
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 1);
}

static void locking_free(void *data) {
  pthread_mutex_lock(&lock);
  free(data);
  pthread_mutex_unlock(&lock);
}

static int lockfree_write(const data_set_t *ds, const value_list_t *vl,
                          user_data_t *ud) {
  atomic_store(&writing, true);
  wait_for(&unregistered);
  atomic_store(&returning, true);
  return 0;
}

static int lockfree_notification(const notification_t *n, user_data_t *ud) {
  return 0;
}

static void *lockfree_thread(void *arg) {
  wait_for(&writing);
  plugin_unregister_write("lockfree");
  atomic_store(&unregistered, true);
  wait_for(&returning);
  /* The daemon notices a little later that the writer has returned: only then
   * could registering something find that the writer is to be freed. */
  poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 200);

  pthread_mutex_lock(&lock);
  plugin_register_notification("lockfree", lockfree_notification,
                               /* user_data = */ NULL);
  pthread_mutex_unlock(&lock);
  INFO("lockfree plugin: The callback has been registered.");
  return NULL;
}

static int lockfree_init(void) {
  user_data_t ud = {.data = malloc(8), .free_func = locking_free};
  int status = plugin_register_write("lockfree", lockfree_write, &ud);
  if (status != 0)
    return status;

  pthread_t thread;
  status =
      plugin_thread_create(&thread, lockfree_thread, /* arg = */ NULL, "lock");
  return (status != 0) ? status : pthread_detach(thread);
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_init("lockfree", lockfree_init);
}
