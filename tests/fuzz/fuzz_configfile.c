/* Texts of the option "config": parsed with all that they include, given to the
 * callbacks of plugins, kept as what is in force. */

#include "collectd.h"

#include "configfile.h"
#include "plugin.h"
#include "plugin_internal.h"
#include "plugin_lifecycle.h"
#include "plugin_record.h"
#include "utils/common/common.h"

#include "fuzz.h"

static int simple(char const *key, char const *value) {
  FUZZ_CHECK((key != NULL) && (value != NULL));
  return (value[0] == 'x') ? -1 : 0;
}

static int complex_cb(oconfig_item_t *ci) {
  char *string = NULL;
  char buffer[8];
  int number;
  bool flag;
  cdtime_t time;

  for (int i = 0; i < ci->children_num; i++) {
    oconfig_item_t *child = ci->children + i;
    FUZZ_CHECK(child->key != NULL);
    cf_util_get_string(child, &string);
    cf_util_get_string_buffer(child, buffer, sizeof(buffer));
    cf_util_get_boolean(child, &flag);
    cf_util_get_cdtime(child, &time);
    cf_util_get_int(child, &number);
    if (cf_util_get_service(child, &string) == 0)
      cf_util_get_port_number(child);
  }
  sfree(string);
  return 0;
}

int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size) {
  static plugin_record_t *rec;
  char reason[512] = "";

  if (rec == NULL) {
    char const *keys[] = {"Key", "Other"};
    fuzz_daemon_init();
    rec = plugin_record_get("complex");
    FUZZ_CHECK(rec != NULL);
    FUZZ_CHECK(plugin_record_get("simple") != NULL);
    cf_register("simple", simple, keys, STATIC_ARRAY_SIZE(keys));
    FUZZ_CHECK(cf_register_complex("complex", complex_cb) == 0);
  }

  char *text = malloc(size + 1);
  FUZZ_CHECK(text != NULL);
  memcpy(text, data, size);
  text[size] = '\0';
  oconfig_item_t *root = cf_parse_text(text, reason, sizeof(reason));
  free(text);
  if (root == NULL) {
    FUZZ_CHECK(reason[0] != '\0');
    return 0;
  }

  for (int i = 0; i < root->children_num; i++) {
    oconfig_item_t *child = root->children + i;
    plugin_ctx_t ctx = {.name = "name"};
    bool global = false;

    cf_loadplugin_options(child, &ctx, &global);
    cf_configure_plugin("simple", child);
    plugin_configure("complex", child);
  }
  oconfig_free(root);

  size_t num = 0;
  oconfig_item_t **blocks = plugin_record_take_blocks(rec, &num);
  for (size_t i = 0; i < num; i++)
    oconfig_free(blocks[i]);
  sfree(blocks);
  return 0;
}
