/* What the test plugins have in common that do not return for a while: the
 * options "Entered" and "Release", two paths. Include it after collectd's
 * headers. */

#include <fcntl.h>
#include <poll.h>

#define WAIT_FOR_RELEASE_KEYS "Entered", "Release"

/* Never freed: threads may outlive the shutdown callback. */
static char entered[PATH_MAX];
static char release[PATH_MAX];

/* Takes the two options and refuses others. */
static int wait_for_release_config(const char *key, const char *value) {
  if (strcasecmp(key, "Entered") == 0)
    sstrncpy(entered, value, sizeof(entered));
  else if (strcasecmp(key, "Release") == 0)
    sstrncpy(release, value, sizeof(release));
  else
    return -1;

  return 0;
}

/* Appends a byte to the file "Entered" and does not return until the file
 * "Release" exists. */
static int wait_for_release(void) {
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
