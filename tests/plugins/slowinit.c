/* Its init callback creates the file "Entered" and then does not return until
 * the file "Release" exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>
#include <poll.h>

static const char *config_keys[] = {"Entered", "Release"};

static char *entered;
static char *release;

static int slowinit_config(const char *key, const char *value) {
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

static int slowinit_init(void) {
  int fd = open(entered, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0)
    return -1;
  close(fd);

  while (access(release, F_OK) != 0)
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);

  INFO("slowinit plugin: The init callback returns.");
  return 0;
}

static int slowinit_shutdown(void) {
  sfree(entered);
  sfree(release);
  return 0;
}

void module_register(void) {
  plugin_register_config("slowinit", slowinit_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_init("slowinit", slowinit_init);
  plugin_register_shutdown("slowinit", slowinit_shutdown);
}
