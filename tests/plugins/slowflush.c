/* Its flush callback creates the file "Entered" and then does not return until
 * the file "Release" exists, unless another thread is in it. Its shutdown
 * callback ends the process if it is called meanwhile. At the notification
 * "raise" it sends the calling thread SIGTERM. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>

static const char *config_keys[] = {"Entered", "Release"};

static char *entered;
static char *release;

static atomic_bool flushing;

static int slowflush_config(const char *key, const char *value) {
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

static int slowflush_flush(cdtime_t timeout, const char *identifier,
                           user_data_t *ud) {
  if ((entered == NULL) || (release == NULL))
    return 0;

  if (atomic_exchange(&flushing, true))
    return 0;
  int fd = open(entered, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd >= 0)
    close(fd);

  while (access(release, F_OK) != 0)
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);
  atomic_store(&flushing, false);
  return 0;
}

static int slowflush_notification(const notification_t *n, user_data_t *ud) {
  return (strcmp(n->message, "raise") == 0) ? raise(SIGTERM) : 0;
}

static int slowflush_shutdown(void) {
  if (atomic_load(&flushing)) {
    fprintf(stderr, "slowflush plugin: Shutdown during a flush.\n");
    abort();
  }

  sfree(entered);
  sfree(release);
  return 0;
}

void module_register(void) {
  plugin_register_config("slowflush", slowflush_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_flush("slowflush", slowflush_flush, /* user_data = */ NULL);
  plugin_register_notification("slowflush", slowflush_notification,
                               /* user_data = */ NULL);
  plugin_register_shutdown("slowflush", slowflush_shutdown);
}
