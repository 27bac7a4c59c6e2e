/* Whole sessions of the control protocol, from the lines to the answers. There
 * is one answer to each line, and its first line says how many lines follow. */

#define _GNU_SOURCE

#include "collectd.h"

#include "plugin.h"

#include <sys/mman.h>

#include "unixsock.c" /* sic */

#include "fuzz.h"

/* Whoever asks may do everything. */
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *value,
                      socklen_t *len) {
  struct ucred *cred = value;

  FUZZ_CHECK((level == SOL_SOCKET) && (name == SO_PEERCRED));
  FUZZ_CHECK(*len == sizeof(*cred));
  *cred = (struct ucred){.pid = getpid(), .uid = geteuid(), .gid = getegid()};
  return 0;
}

static int answers_fd;
static char *answers;
static size_t answers_len;

static FILE *open_copy(int fd, char const *mode) {
  FILE *fh = fdopen(dup(fd), mode);

  FUZZ_CHECK(fh != NULL);
  return fh;
}

static void read_answers(void) {
  struct stat statbuf;

  FUZZ_CHECK(fstat(answers_fd, &statbuf) == 0);
  answers_len = (size_t)statbuf.st_size;
  answers = malloc(answers_len + 1);
  FUZZ_CHECK(answers != NULL);
  FUZZ_CHECK(pread(answers_fd, answers, answers_len, 0) ==
             (ssize_t)answers_len);
  answers[answers_len] = '\0';
}

/* How many of the lines are to be answered. */
static size_t count_lines(char const *data, size_t size) {
  size_t num = 0;

  while (size > 0) {
    char const *end = memchr(data, '\n', size);
    size_t len = (end != NULL) ? (size_t)(end - data) : size;
    size_t next = (end != NULL) ? len + 1 : len;

    while ((len > 0) && (data[len - 1] == '\r'))
      len--;
    if (len > 0)
      num++;
    data += next;
    size -= next;
  }

  return num;
}

static size_t count_answers(void) {
  size_t num = 0;
  char *line = answers;
  char *end = answers + answers_len;
  while (line < end) {
    char *rest = NULL;
    errno = 0;
    long lines = strtol(line, &rest, 10);
    FUZZ_CHECK((rest != line) && (*rest == ' ') && (errno == 0));
    num++;

    for (long i = 0; i <= ((lines > 0) ? lines : 0); i++) {
      FUZZ_CHECK(line < end);
      line = memchr(line, '\n', (size_t)(end - line));
      FUZZ_CHECK(line != NULL);
      line++;
    }
  }

  return num;
}

int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size) {
  static bool initialized;

  if (!initialized)
    fuzz_daemon_init();
  initialized = true;

  int lines_fd = memfd_create("lines", MFD_CLOEXEC);
  FUZZ_CHECK(lines_fd >= 0);
  FUZZ_CHECK(swrite(lines_fd, data, size) == 0);
  FUZZ_CHECK(lseek(lines_fd, 0, SEEK_SET) == 0);
  answers_fd = memfd_create("answers", MFD_CLOEXEC);
  FUZZ_CHECK(answers_fd >= 0);

  /* A connection's thread has a socket for both. */
  FILE *lines = open_copy(lines_fd, "r");
  FILE *out = open_copy(answers_fd, "w");
  us_serve(lines, out);
  fclose(lines);
  fclose(out);
  close(lines_fd);

  read_answers();
  close(answers_fd);

  FUZZ_CHECK(count_answers() == count_lines((char const *)data, size));
  fuzz_daemon_reset();
  free(answers);
  answers = NULL;
  return 0;
}
