/* A thread of it unregisters its writer at once. The writer's free function
 * creates the file "Entered" and does not return until the file "Release"
 * exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>
#include <poll.h>

static const char *config_keys[] = {"Entered", "Release"};

static char *entered;
static char *release;

static int slowfree_config(const char *key, const char *value) {
  char **path;
  if (strcasecmp(key, "Entered") == 0)
    path = &entered;
  else if (strcasecmp(key, "Release") == 0)
    path = &release;
  else
    return -1;

  free(*path);
  *path = sstrdup(value);
  return 0;
}

static void slow_free(void *data) {
  int fd = open(entered, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd >= 0)
    close(fd);

  while (access(release, F_OK) != 0)
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);
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
  sfree(entered);
  sfree(release);
  return 0;
}

void module_register(void) {
  plugin_register_config("slowfree", slowfree_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("slowfree", slowfree_init);
  plugin_register_shutdown("slowfree", slowfree_shutdown);
}
