/* The parsers of the control protocol's commands, one line at a time. */

#include "collectd.h"

#include "utils/cmds/cmds.h"
#include "utils/common/common.h"

#include "fuzz.h"

static int errors;

static void count_error(void *ud, cmd_status_t status, char const *format,
                        va_list ap) {
  char buffer[1024];

  vsnprintf(buffer, sizeof(buffer), format, ap);
  FUZZ_CHECK(buffer[0] != '\0');
  FUZZ_CHECK(status != CMD_OK);
  errors++;
}

int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size) {
  static bool initialized;
  cmd_error_handler_t err = {.cb = count_error};
  cmd_options_t const options[] = {{.identifier_default_host = NULL},
                                   {.identifier_default_host = "localhost"}};

  if (!initialized)
    fuzz_daemon_init();
  initialized = true;

  for (size_t i = 0; i < STATIC_ARRAY_SIZE(options); i++) {
    cmd_t cmd;
    /* Of exactly that size, so that one byte too far is noticed. */
    char *line = malloc(size + 1);
    FUZZ_CHECK(line != NULL);
    memcpy(line, data, size);
    line[size] = '\0';

    errors = 0;
    cmd_status_t status = cmd_parse(line, &cmd, options + i, &err);
    free(line);

    /* Whoever sent the line gets one answer to it: from here if it is wrong,
     * otherwise from whoever executes it. */
    FUZZ_CHECK(errors == ((status == CMD_OK) ? 0 : 1));
    if (status == CMD_OK)
      cmd_destroy(&cmd);
  }
  return 0;
}
