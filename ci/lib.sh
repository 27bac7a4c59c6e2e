# shellcheck shell=bash
# What the scripts in ci/ share: paths, progress lines, packages, the source
# tarball, and how a tree is brought to another state. Sourced, never run.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=${COLLECTD_LIVE_BUILD:-$ROOT/build}
mkdir -p "$BUILD"
BUILD=$(cd "$BUILD" && pwd)
LOG_DIR=$BUILD/log
PATCH_DIR=${COLLECTD_LIVE_PATCHES:-$ROOT/collectd-patches}
export COLLECTD_LIVE_BUILD=$BUILD
# Messages of compilers and tools are compared and counted: one language only.
export LC_ALL=C.UTF-8

# collectd's release, as Debian's source package carries it.
TARBALL_NAME=collectd_5.12.0.orig.tar.xz
TARBALL_SHA256=9ccc5ebb9884a8fca1c4cdbd48d45c5875d683330a482d09da4fe2c571f3b536

# What a build needs; autoconf and automake bring perl. The libraries of curl,
# gcrypt, mosquitto, RRDtool and yajl are for plugins: network, mqtt, rrdtool and
# write_http.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
BUILD_PACKAGES=(autoconf automake bison flex gcc libc6-dev libcurl4-gnutls-dev
	libgcrypt20-dev libmosquitto-dev librrd-dev libssl-dev libtool libyajl-dev
	make patch pkg-config xz-utils)

# What the tests need beside: the comparison of ABIs, a broker, certificates,
# symbol tables, a reader of RRD files, and the library that bindgen reads C with,
# with its own headers.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
TEST_PACKAGES=(abigail-tools binutils libclang-common-14-dev libclang1-14
	mosquitto openssl rrdtool)

# The plugins that build with BUILD_PACKAGES. Named one by one, so that the result
# does not depend on which other libraries the machine happens to have.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
ALL_PLUGINS=(aggregation apcups battery buddyinfo cgroups check_uptime chrony
	conntrack contextswitch cpu cpufreq cpusleep csv df disk drbd email entropy
	ethstat exec fhcount filecount fscache hddtemp hugepages infiniband interface
	ipc ipvs irq load logfile logparser madwifi match_empty_counter match_hashed
	match_regex match_timediff match_value mbmon mcelog md mdevents memcached
	memory mqtt multimeter network nfs notify_nagios ntpd numa olsrd openvpn
	pcie_errors powerdns processes protocols rrdtool serial statsd swap synproxy
	syslog table tail tail_csv target_notification target_replace target_scale
	target_set target_v5upgrade tcpconns teamspeak2 ted thermal threshold
	turbostat ubi unixsock uptime users uuid vmem vserver wireless write_graphite
	write_http write_influxdb_udp write_log write_sensu write_syslog write_tsdb
	zfs_arc zookeeper)

# The plugins of the trees for comparisons, sanitizers and ci/series: few, so
# that they build fast.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
FEW_PLUGINS=(aggregation contextswitch cpu csv df disk exec interface irq load
	logfile match_regex memory processes swap syslog tail target_set tcpconns
	threshold unixsock uptime users vmem write_graphite write_log)

# Beside those, the plugins of the tree for AddressSanitizer: they come and go
# in its tests.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
ASAN_PLUGINS=(mqtt network rrdtool statsd write_http)

# The same in the tree for ThreadSanitizer.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
TSAN_PLUGINS=(network statsd)

# Plugins are named one by one, bindings would need their languages, and
# upstream's tests run the same whether or not the machine has valgrind.
# shellcheck disable=SC2034 # Used by the scripts that load this file.
CONFIGURE_OPTIONS=(--disable-static --disable-all-plugins --without-java
	--without-perl-bindings ac_cv_path_VALGRIND=)

# What a step (see below) knows of its script's variables.
STEP_VARS=(ROOT BUILD LOG_DIR PATCH_DIR TARBALL_NAME TARBALL_SHA256 FEW_PLUGINS
	STEP_VARS)

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# --- progress and results ---------------------------------------------------

# A script called by another one goes on counting where that one started.
export COLLECTD_LIVE_START=${COLLECTD_LIVE_START:-$(date +%s)}

say() {
	printf '[%4ds] %s\n' $(($(date +%s) - COLLECTD_LIVE_START)) "$*"
}

# The log file of the step called $1.
step_log() {
	echo "$LOG_DIR/$(tr -sc 'A-Za-z0-9_.=\n' - <<<"$1").log"
}

# try NAME COMMAND...: one step, with its output in a log file. Its line tells
# when it began, what it is and how long it took; a failure adds the end of the
# log. Answers the command's status.
try() {
	local name=$1 log begin status=0
	shift
	mkdir -p "$LOG_DIR"
	log=$(step_log "$name")
	begin=$(date +%s)
	printf '[%4ds] %s …' $((begin - COLLECTD_LIVE_START)) "$name"
	run "$@" >"$log" 2>&1 </dev/null || status=$?
	if [ "$status" -eq 0 ]; then
		printf ' %ds\n' $(($(date +%s) - begin))
	else
		printf ' FAILED\n'
		{
			echo "--- step '$name' failed with status $status; its last lines:"
			tail -n 30 "$log" | sed 's/^/    /'
			echo "--- step '$name' failed; the whole log is $log"
		} >&2
	fi
	return "$status"
}

# step NAME COMMAND...: the same, and the script ends if it fails.
step() {
	try "$@" || exit 1
}

# Runs a command or one of the script's functions. A function gets a shell of
# its own: called in the condition of "try", it would lose errexit and go on
# after a failure.
run() {
	if [ "$(type -t "$1")" = function ]; then
		bash -euo pipefail -c "$(declare -p "${STEP_VARS[@]}")
			$(declare -f)
			"'"$@"' "$0" "$@"
	else
		"$@"
	fi
}

# tally pass|fail|skip NAME [REASON]: a result for the sum that ci/test prints.
tally() {
	if [ -n "${COLLECTD_LIVE_TALLY:-}" ]; then
		printf '%s\t%s\t%s\n' "$1" "$2" "${3:-}" >>"$COLLECTD_LIVE_TALLY"
	fi
}

# --- packages ---------------------------------------------------------------

as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "needs root or sudo for: $*"
	fi
}

# The packages among the arguments that are not installed.
missing_packages() {
	local package
	for package; do
		if ! dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null |
			grep -qx installed; then
			echo "$package"
		fi
	done
}

# need_packages PACKAGE...: installs those that are missing.
need_packages() {
	local missing
	mapfile -t missing < <(missing_packages "$@")
	if [ "${#missing[@]}" -gt 0 ]; then
		step "install packages: ${missing[*]}" install_packages "${missing[@]}"
	fi
}

install_packages() {
	# Package lists that are absent or too old to install from are fetched.
	if ! apt_install --download-only "$@"; then
		as_root apt-get update -q
	fi
	apt_install "$@"
}

apt_install() {
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends "$@"
}

# --- the source -------------------------------------------------------------

# need_source: leaves the verified tarball in build/source.
need_source() {
	local tarball=$BUILD/source/$TARBALL_NAME
	if [ -n "${COLLECTD_TARBALL:-}" ]; then
		[ -f "$COLLECTD_TARBALL" ] ||
			die "COLLECTD_TARBALL names no file: $COLLECTD_TARBALL"
		verify_tarball "$COLLECTD_TARBALL"
		if ! cmp -s "$COLLECTD_TARBALL" "$tarball"; then
			mkdir -p "$BUILD/source"
			cp "$COLLECTD_TARBALL" "$tarball.new"
			mv "$tarball.new" "$tarball"
		fi
	elif [ ! -f "$tarball" ]; then
		step "fetch collectd's source" fetch_source
	fi
	verify_tarball "$tarball"
}

verify_tarball() {
	local sum
	sum=$(digest <"$1")
	if [ "$sum" != "$TARBALL_SHA256" ]; then
		die "wrong checksum, not used: $1
  expected sha256 $TARBALL_SHA256
  found    sha256 $sum"
	fi
}

# Downloads the tarball with apt from the archive that the machine itself uses.
# All that apt writes (lists, caches, the entry for sources) is below
# build/source/apt, so the system's configuration is neither read for sources
# nor changed.
fetch_source() {
	local apt=$BUILD/source/apt
	rm -rf "$apt"
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/empty"
	source_entries >"$apt/sources.list"
	if [ ! -s "$apt/sources.list" ]; then
		# A machine without package lists cannot tell its archives' origin.
		as_root apt-get update -q
		source_entries >"$apt/sources.list"
	fi
	[ -s "$apt/sources.list" ] ||
		die "apt knows no Debian archive of this release; name a tarball in COLLECTD_TARBALL"
	cat "$apt/sources.list"
	cat >"$apt/apt.conf" <<CONF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "$apt/empty";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb;
CONF
	if [ "$(id -u)" -eq 0 ]; then
		# The sandbox user could not write below a private home directory.
		echo 'APT::Sandbox::User "root";' >>"$apt/apt.conf"
	fi
	apt-get -c "$apt/apt.conf" update -q
	(cd "$apt" &&
		apt-get -c "$apt/apt.conf" source -q --tar-only --download-only collectd)
	[ -f "$apt/$TARBALL_NAME" ] ||
		die "the archive's collectd is not the release needed ($TARBALL_NAME): $(ls "$apt")"
	verify_tarball "$apt/$TARBALL_NAME"
	mv "$apt/$TARBALL_NAME" "$BUILD/source/$TARBALL_NAME"
	rm -rf "$apt"
}

# A deb-src line for each archive of the running Debian release that apt is
# configured for, in whichever format. Other archives may not offer sources.
source_entries() {
	local release
	release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	# shellcheck disable=SC2016 # These are apt's variables.
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(SIGNED_BY)' \
		'Created-By: Packages' 'Origin: Debian' 'Component: main' |
		sort -u | awk -v release="$release" '
			$2 == release {
				# A key that is no file is left to the system'"'"'s keyrings.
				key = $3 ~ /^\// ? "[signed-by=" $3 "] " : ""
				print "deb-src " key $1 " " $2 " main"
			}'
}

# --- trees ------------------------------------------------------------------

# unpack DIR: the source as released, in a new directory.
unpack() {
	rm -rf "$1"
	mkdir -p "$1"
	tar -xJf "$BUILD/source/$TARBALL_NAME" -C "$1" --strip-components=1 \
		--no-same-owner
}

# The names of the patches in the series, in order.
series() {
	if [ -f "$PATCH_DIR/series" ]; then
		sed -e 's/[[:space:]]*#.*//' -e '/^[[:space:]]*$/d' "$PATCH_DIR/series"
	fi
}

# apply_patch DIR PATCH: exactly where it says, or not at all.
apply_patch() {
	local said
	if ! said=$(patch -d "$1" -p1 -F0 -N -r - --no-backup-if-mismatch \
		-i "$PATCH_DIR/$2" 2>&1); then
		echo "$said" >&2
		die "does not apply: $2"
	fi
}

# The checksum of stdin.
digest() {
	sha256sum | cut -d' ' -f1
}

list_files() {
	(cd "$1" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum)
}

# update_tree NEW TREE: makes the sources in TREE those of NEW, touching only
# files that differ, so that make builds only what depends on them. What make
# has put into TREE stays. The names of changed files go to stdout; NEW is gone
# afterwards. TREE.files lists the sources that TREE was made of.
update_tree() {
	local new=$1 tree=$2 name
	list_files "$new" >"$tree.files.new"
	if [ ! -d "$tree" ] || [ ! -f "$tree.files" ]; then
		rm -rf "$tree"
		mv "$new" "$tree"
	else
		comm -23 <(names "$tree.files") <(names "$tree.files.new") |
			while read -r name; do
				echo "$name"
				rm -f "$tree/$name"
			done
		# A run cut off here finds the same files to copy again.
		comm -13 <(sort "$tree.files") <(sort "$tree.files.new") | names |
			while read -r name; do
				echo "$name"
				mkdir -p "$(dirname "$tree/$name")"
				cp --preserve=mode "$new/$name" "$tree/$name"
			done
		rm -rf "$new"
	fi
	mv "$tree.files.new" "$tree.files"
}

# The names in a list of checksums.
names() {
	sed -E 's/^[0-9a-f]{64}  //' "$@" | sort
}

# generates_build: whether a name on stdin is that of an input of build.sh.
# What is made from Makefile.am make itself makes again.
generates_build() {
	grep -qE '(^|/)(configure\.ac|build\.sh|version-gen\.sh|[^/]*\.m4)$'
}

# bootstrap TREE: generates configure and the files it needs.
bootstrap() {
	cd "$1"
	./build.sh
	# build.sh makes this file before those it depends on, and make would make
	# it again, in the middle of a build, and then build all objects again.
	touch src/config.h.in
}
