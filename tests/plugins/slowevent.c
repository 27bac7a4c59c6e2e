/* Subscribes to the cache events of every new value. For a new value it makes
 * the file "Entered" and does not return until the file "Release" exists; the
 * other events it logs. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>
#include <poll.h>

static const char *config_keys[] = {"Entered", "Release"};

static char *entered;
static char *release;

static int slowevent_config(const char *key, const char *value) {
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

static int slowevent_event(cache_event_t *event, user_data_t *ud) {
  if (event->type != CE_VALUE_NEW) {
    INFO("slowevent plugin: An event of %s.", event->value_list_name);
    return 0;
  }

  int fd = open(entered, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0)
    return -1;
  close(fd);
  while (access(release, F_OK) != 0)
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);
  event->ret = 1;
  return 0;
}

static int slowevent_shutdown(void) {
  sfree(entered);
  sfree(release);
  return 0;
}

void module_register(void) {
  plugin_register_config("slowevent", slowevent_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_cache_event("slowevent", slowevent_event,
                              /* user_data = */ NULL);
  plugin_register_shutdown("slowevent", slowevent_shutdown);
}
