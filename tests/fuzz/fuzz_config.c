/* The configuration parser, liboconfig. The first byte of an input is the
 * number of bytes that are parsed first: whatever they leave behind, the rest
 * must be parsed as if it were alone. */

#define _GNU_SOURCE

#include "fuzz.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* It is one line of text. */
static void check_reason(char const *reason) {
  FUZZ_CHECK(reason[0] != '\0');
  FUZZ_CHECK(strpbrk(reason, "\r\n") == NULL);
}

static oconfig_item_t *parse_strictly(uint8_t const *text, size_t size) {
  char reason[512] = "";
  oconfig_item_t *tree = oconfig_parse_buffer("input", (char const *)text, size,
                                              reason, sizeof(reason));
  if (tree == NULL)
    check_reason(reason);

  return tree;
}

/* As the daemon's own files are parsed. */
static oconfig_item_t *parse_file(uint8_t const *text, size_t size) {
  char path[64], reason[512] = "";

  int fd = memfd_create("input", MFD_CLOEXEC);
  FUZZ_CHECK(fd >= 0);
  FUZZ_CHECK(write(fd, text, size) == (ssize_t)size);
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  oconfig_item_t *tree =
      oconfig_parse_file_err(path, /* strict = */ 0, reason, sizeof(reason));
  close(fd);
  if (tree == NULL)
    check_reason(reason);

  return tree;
}

/* Children have the parents that their tree has given them, or none. */
static void check_parents(oconfig_item_t const *ci) {
  for (int i = 0; i < ci->children_num; i++) {
    oconfig_item_t const *child = ci->children + i;
    FUZZ_CHECK((child->parent == NULL) || (child->parent == ci));
    check_parents(child);
  }
}

int LLVMFuzzerTestOneInput(uint8_t const *data, size_t size) {
  if (size < 1)
    return 0;
  size_t first = data[0];
  data++;
  size--;
  if (first > size)
    first = size;

  oconfig_item_t *alone = parse_strictly(data + first, size - first);
  oconfig_free(parse_strictly(data, first));
  oconfig_item_t *tree = parse_strictly(data + first, size - first);
  FUZZ_CHECK((alone == NULL) == (tree == NULL));
  oconfig_free(parse_file(data, first));
  oconfig_item_t *file = parse_file(data + first, size - first);

  if (tree != NULL) {
    FUZZ_CHECK(fuzz_same_tree(alone, tree));

    /* What is right strictly is right. */
    FUZZ_CHECK(file != NULL);
    FUZZ_CHECK(fuzz_same_tree(tree, file));

    for (int i = 0; i < tree->children_num; i++) {
      oconfig_item_t *clone = oconfig_clone(tree->children + i);
      FUZZ_CHECK(clone != NULL);
      FUZZ_CHECK(fuzz_same_tree(tree->children + i, clone));
      check_parents(clone);
      oconfig_free(clone);
    }
  }

  oconfig_free(alone);
  oconfig_free(tree);
  oconfig_free(file);
  return 0;
}
