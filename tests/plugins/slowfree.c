/* A thread of it unregisters its writer at once. The writer's free function
 * creates the file "Entered" and does not return until the file "Release"
 * exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include "wait_for_release.h"

static const char *config_keys[] = {WAIT_FOR_RELEASE_KEYS};

static void slow_free(void *data) {
  wait_for_release();
  free(data);
}

static int slowfree_write(const data_set_t *ds, const value_list_t *vl,
                          user_data_t *ud) {
  return 0;
}

static pthread_t thread;
static bool have_thread;

static void *slowfree_thread(void *arg) {
  plugin_unregister_write("slowfree");
  return NULL;
}

static int slowfree_init(void) {
  user_data_t ud = {.data = malloc(8), .free_func = slow_free};
  int status = plugin_register_write("slowfree", slowfree_write, &ud);
  if (status != 0)
    return status;

  status =
      plugin_thread_create(&thread, slowfree_thread, /* arg = */ NULL, "free");
  have_thread = (status == 0);
  return status;
}

static int slowfree_shutdown(void) {
  if (have_thread)
    pthread_join(thread, /* retval = */ NULL);
  have_thread = false;
  return 0;
}

void module_register(void) {
  plugin_register_config("slowfree", wait_for_release_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("slowfree", slowfree_init);
  plugin_register_shutdown("slowfree", slowfree_shutdown);
}
