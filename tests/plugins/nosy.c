/* Does in its config callback what a check of the configuration must keep to
 * itself. "Target" is a directory and "Port" a port that somebody listens to;
 * whatever works is named in a file in the directory, or, since that may be one
 * of the things that do not work, on standard output. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

static const char *config_keys[] = {"Target", "Port"};

static char target[1024];

static void worked(char const *what) {
  printf("nosy: %s\n", what);
  fflush(stdout);
}

static int nosy_read(void) {
  worked("read");
  return 0;
}

static int nosy_init(void) {
  worked("init");
  return 0;
}

static int nosy_shutdown(void) {
  worked("shutdown");
  return 0;
}

static int nosy_write(const data_set_t *ds, const value_list_t *vl,
                      user_data_t *ud) {
  worked("write");
  return 0;
}

static void nosy_log(int severity, const char *message, user_data_t *ud) {
  worked("log");
}

static int nosy_notification(const notification_t *n, user_data_t *ud) {
  worked("notification");
  return 0;
}

static void touch_files(void) {
  char path[1100];

  ssnprintf(path, sizeof(path), "%s/removed", target);
  if (unlink(path) == 0)
    worked("unlink");

  ssnprintf(path, sizeof(path), "%s/written", target);
  FILE *fh = fopen(path, "w");
  if (fh != NULL) {
    fclose(fh);
    worked("create");
  }
}

static void use_network(int port) {
  struct sockaddr_in addr = {
      .sin_family = AF_INET,
      .sin_port = htons((uint16_t)port),
      .sin_addr = {htonl(INADDR_LOOPBACK)},
  };
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
    worked("connect");
  close(fd);
}

/* What is no harm must be possible: to write down an address in numbers, and to
 * bind to one that this host may well have. */
static void use_addresses(void) {
  struct addrinfo hints = {
      .ai_family = AF_INET,
      .ai_flags = AI_ADDRCONFIG,
  };
  struct addrinfo *list = NULL;
  int status = getaddrinfo("192.0.2.77", NULL, &hints, &list);
  if (status == 0)
    freeaddrinfo(list);
  else
    ERROR("nosy plugin: No address: %s", gai_strerror(status));

  struct sockaddr_in addr = {
      .sin_family = AF_INET,
      .sin_addr = {htonl(0xc000024e)},
  };
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0)
    ERROR("nosy plugin: No bind: %s", STRERRNO);
  close(fd);
}

/* The process that has started this one. */
static void signal_parent(void) {
  pid_t pid = getppid();
  if ((pid > 1) && (kill(pid, 0) == 0))
    worked("signal");
}

static int nosy_config(const char *key, const char *value) {
  notification_t n = {.severity = NOTIF_OKAY, .time = cdtime()};

  if (strcasecmp(key, "Target") == 0) {
    sstrncpy(target, value, sizeof(target));
    touch_files();
    signal_parent();
    ERROR("nosy plugin: This is where it is.");
    plugin_dispatch_notification(&n);
    return 0;
  }

  use_network(atoi(value));
  use_addresses();
  return 0;
}

void module_register(void) {
  plugin_register_config("nosy", nosy_config, config_keys,
                         STATIC_ARRAY_SIZE(config_keys));
  plugin_register_log("nosy", nosy_log, NULL);
  plugin_register_notification("nosy", nosy_notification, NULL);
  plugin_register_init("nosy", nosy_init);
  plugin_register_read("nosy", nosy_read);
  plugin_register_write("nosy", nosy_write, NULL);
  plugin_register_shutdown("nosy", nosy_shutdown);
}
