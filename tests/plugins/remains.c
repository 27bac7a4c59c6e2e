/* Leaves something behind when it has been shut down. "Leave" says what: a
 * "handler" of SIGUSR2 in its object, which creates the file "caught", or its
 * "object", which stays in memory. If there is a file "remains-copes" it says
 * that it can start over then. */

#define _GNU_SOURCE

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>

static const char *config_keys[] = {"Leave"};

static int registered;

static void handle_signal(int sig) {
  int fd = open("caught", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  if (fd >= 0)
    close(fd);
}

/* Keeps the object in memory for good. */
static int pin(void) {
  Dl_info info;
  if (dladdr(&registered, &info) == 0)
    return -1;

  void *handle = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  return (handle != NULL) ? dlclose(handle) : -1;
}

static int remains_config(const char *key, const char *value) {
  if (strcasecmp(value, "object") == 0)
    return pin();

  struct sigaction sa = {.sa_handler = handle_signal};
  return sigaction(SIGUSR2, &sa, /* old = */ NULL);
}

void module_register(void) {
  registered++;
  INFO("remains plugin: Registered %i times.", registered);
  plugin_register_unloadable(
      (access("remains-copes", F_OK) == 0) ? PLUGIN_UNLOADABLE_RESIDENT : 0);
  plugin_register_config("remains", remains_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
}
