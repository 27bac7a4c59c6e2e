/* Has five readers. Each appends a byte to the file "Entered" and then does not
 * return until the file "Release" exists. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <fcntl.h>
#include <poll.h>

static const char *config_keys[] = {"Entered", "Release"};

static char *entered;
static char *release;

static int slowread_config(const char *key, const char *value) {
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

static int slowread_read(user_data_t *ud) {
  int fd = open(entered, O_APPEND | O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd < 0)
    return -1;
  int status = swrite(fd, ".", 1);
  close(fd);
  if (status != 0)
    return -1;

  while (access(release, F_OK) != 0)
    poll(/* fds = */ NULL, /* nfds = */ 0, /* milliseconds = */ 5);
  return 0;
}

static int slowread_shutdown(void) {
  sfree(entered);
  sfree(release);
  return 0;
}

void module_register(void) {
  plugin_register_config("slowread", slowread_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  for (int i = 0; i < 5; i++) {
    char name[DATA_MAX_NAME_LEN];
    ssnprintf(name, sizeof(name), "slowread-%d", i);
    plugin_register_complex_read(/* group = */ NULL, name, slowread_read,
                                 /* interval = */ 0, /* user_data = */ NULL);
  }
  plugin_register_shutdown("slowread", slowread_shutdown);
}
