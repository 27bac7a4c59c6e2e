/* Fails with a reason that is hard to print: quotes, a backslash, control
 * characters, and bytes that are not UTF-8. */

#include "collectd.h"

#include "plugin.h"
#include "utils/common/common.h"

static int oddwords_init(void) {
  ERROR("\"quoted\", back\\slash, {brace}, caf\xc3\xa9,\ttab\nline \xff\xc3 "
        "\xed\xa0\x80 end");
  return -1;
}

void module_register(void) {
  plugin_register_unloadable(/* flags = */ 0);
  plugin_register_init("oddwords", oddwords_init);
}
