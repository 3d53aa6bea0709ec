# shellcheck shell=sh
# What the ten actions of the sample provider share. Each of them is a short list of the steps defined here.
#
# A volume is a folder in `dir`, which several hosts may share:
#
#   DIR/VOL_NAME/data.raw    the bytes of the disk; its length is the volume's size
#                lock        held with flock by every action that works on the volume
#                metadata    what setinfo was last told
#                open/HOST   "exclusive BOOT-ID" or "shared BOOT-ID", one file for each host that has it open
#
# What serves it on this host is a folder in `run`, named after a digest because the path of a socket is short:
#
#   RUN/DIGEST/state         "serving" between attach and close, "closed" from close to the next open or attach
#              loop          the loop device's path, written before the device is set up
#              nbd.sock      the path in the URI: a link to the newest server's socket
#              nbd.MIB.sock  a server's socket; a server never changes its size, so each size is a server
#              nbd-2*.sock   the same for the second candidate
#              ending        "PID START-TIME" of servers that were killed and have not been seen gone

set -eu
umask 077
export LC_ALL=C
PATH=${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin # losetup and blockdev
cd /                                        # hold no folder busy, and take no relative path for a good one

# Only the answer goes to stdout, through descriptor 3; whatever a program prints on the way goes to stderr.
exec 3>&1 1>&2

action=${0##*/}
MIB=1048576
LOCK_TIMEOUT_S=60   # the longest that one action waits for another one of the same volume
END_TIMEOUT_S=10    # a killed process is gone at once unless the kernel still holds its I/O
RELEASE_TIMEOUT_S=2 # udev and blkid open a loop device for moments
SOCKET_PATH_MAX=107 # sun_path of unix(7) has 108 bytes, one of them the final NUL

# --- Failing, and leaving nothing half-made --------------------------------------------------------------------------

undo=:  # the command that takes back what this action has done so far
child=  # the process that this script waits for

fail() {
    printf 'sample: %s: %s\n' "$action" "$*" >&2
    exit 1
}

on_exit() {
    status=$?
    trap '' HUP INT TERM
    trap - EXIT
    [ -z "$child" ] || kill "$child" 2>/dev/null || :
    if [ "$status" -ne 0 ]; then
        set +e
        $undo
        [ "$status" -gt 128 ] || status=1
    fi
    exit "$status"
}

trap on_exit EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a command that may take long. A shell acts on a signal only after the program it runs in the foreground has
# ended, but at once while it waits for one in the background.
patiently() {
    "$@" 3>&- &
    child=$!
    waited=0
    wait "$child" || waited=$?
    child=
    return "$waited"
}

uptime_s() {
    read -r up _ </proc/uptime
    echo "${up%.*}"
}

# Whether the command "$2..." succeeds within $1 seconds.
within() {
    deadline=$(($(uptime_s) + $1))
    shift
    until "$@"; do
        [ "$(uptime_s)" -le "$deadline" ] || return 1
        sleep 0.02
    done
}

need_program() {
    command -v "$1" >/dev/null || fail "the program $1 is not installed; install the package $2"
}

# --- What the caller said --------------------------------------------------------------------------------------------

yes_or_no() {
    case $2 in yes | no) ;; *) fail "the parameter $1 is '$2'; it must be yes or no" ;; esac
}

folder_parameter() {
    case $2 in
    /*) ;;
    *) fail "the parameter $1 is '$2'; it must be an absolute path" ;;
    esac
    case $2 in *[[:cntrl:]]*) fail "the parameter $1 has a control character in it" ;; esac
}

read_parameters() {
    dir=${EXTP_DIR:-/var/lib/hvext/sample}
    run=${EXTP_RUN:-/run/hvext/sample}
    path=${EXTP_PATH:-yes}
    nbd=${EXTP_NBD:-yes}
    candidates=${EXTP_CANDIDATES:-1}
    preallocate=${EXTP_PREALLOCATE:-no}
    attach_delay=${EXTP_ATTACH_DELAY:-0}
    read -r name_of_host </proc/sys/kernel/hostname
    host=${EXTP_HOST:-$name_of_host}

    folder_parameter dir "$dir"
    folder_parameter run "$run"
    # One folder is one folder, however it is spelt: what serves its volumes, and is said of them, has one name.
    {
        IFS= read -r dir
        IFS= read -r run
    } <<FOLDERS
$(realpath --canonicalize-missing -- "$dir" "$run")
FOLDERS
    yes_or_no path "$path"
    yes_or_no nbd "$nbd"
    yes_or_no preallocate "$preallocate"
    [ "$path$nbd" != nono ] || fail "path=no together with nbd=no leaves no way to the volume; set one of them to yes"
    case $candidates in 1 | 2) ;; *) fail "the parameter candidates is '$candidates'; it must be 1 or 2" ;; esac
    case $attach_delay in
    *[!0-9.]* | *.*.* | .) fail "the parameter attach_delay is '$attach_delay'; it must be a number of seconds" ;;
    esac
    case $host in
    .* | *[!A-Za-z0-9._-]*)
        fail "the host name '$host' has other characters than A-Z a-z 0-9 . _ -; set the parameter host"
        ;;
    esac

    # Checked for the longest name a server's socket can get, so that a volume which could be attached can also grow.
    longest="$run/0123456789abcdef/nbd-2.12345678.sock"
    [ "$nbd" = no ] || [ ${#longest} -le "$SOCKET_PATH_MAX" ] ||
        fail "the sockets below run=$run would have paths of ${#longest} bytes, and a socket's path ends at" \
            "$SOCKET_PATH_MAX; set run to a path that is at least $((${#longest} - SOCKET_PATH_MAX)) bytes shorter"
}

# A misspelt parameter would be ignored for the whole life of the volume, so create and verify do not accept one.
# `provider` and `access` are Ganeti's own.
refuse_unknown_parameters() {
    for variable in $(env -0 | sed -nz 's/^EXTP_\([^=]*\)=.*/\1/p' | tr '\0' ' '); do
        case $variable in
        DIR | RUN | PATH | NBD | CANDIDATES | PREALLOCATE | ATTACH_DELAY | HOST | PROVIDER | ACCESS) ;;
        *) fail "unknown parameter '$(printf %s "$variable" | tr '[:upper:]' '[:lower:]')';" \
            "parameters.list says which there are" ;;
        esac
    done
}

# Prints $2, given in MiB by the variable $1, in bytes.
bytes() {
    case $2 in '' | 0* | *[!0-9]*) fail "$1 is '$2'; it must be a whole number of MiB above 0" ;; esac
    [ ${#2} -le 8 ] || fail "$1 is $2 MiB; more than 99999999 is not supported"
    echo $(($2 * MIB))
}

check_name() {
    case $2 in
    '') fail "$1 is not set" ;;
    [.-]* | *[!A-Za-z0-9._+@:=-]*)
        fail "$1 is '$2'; a name has the characters A-Z a-z 0-9 . _ + @ : = - and starts with none of . -"
        ;;
    esac
    [ ${#2} -le 180 ] || fail "$1 has ${#2} characters; a name may have 180"
}

# Sets what follows from the parameters and VOL_NAME: where the volume is, and where its sockets are.
begin() {
    read_parameters
    VOL_NAME=${VOL_NAME:-}
    check_name VOL_NAME "$VOL_NAME"
    volume=$dir/$VOL_NAME
    data=$volume/data.raw
    digest=$(printf '%s\n%s\n' "$dir" "$VOL_NAME" | sha256sum)
    run_folder=$run/$(printf %.16s "$digest")
    temporary=$dir/.$VOL_NAME~$host.$$ # "~" is in no volume's name
}

# --- The volume ------------------------------------------------------------------------------------------------------

# Takes the volume's lock until the script ends. Fails if there is no such volume, also when it was removed while we
# waited: the lock we then hold belongs to the folder that is gone, which is why the two are compared.
lock_volume() {
    while [ -d "$volume" ]; do
        { command exec 9>>"$volume/lock"; } 2>/dev/null || {
            [ ! -d "$volume" ] || fail "cannot write to $volume/lock as the user $(id -un); act as the volume's owner"
            return 1
        }
        patiently flock --wait "$LOCK_TIMEOUT_S" 9 ||
            fail "another action of volume $VOL_NAME has been running for $LOCK_TIMEOUT_S s;" \
                "look for it in ps, end it, repeat"
        # shellcheck disable=SC3013  # -ef: in dash, bash and busybox for ever, and in POSIX since 2024
        [ "$volume/lock" -ef /proc/self/fd/9 ] && return
    done
    return 1
}

need_volume() {
    lock_volume || fail "there is no volume $VOL_NAME in $dir; create it, or correct the parameter dir"
}

size_of() {
    stat -c %s -- "$1"
}

make_dir() {
    mkdir -p -- "$dir" || fail "cannot make the folder $dir; set dir to a place where $(id -un) may write"
}

# What a killed create, remove or snapshot of this host has left behind.
sweep() {
    for left in "$dir"/.*~"$host".*; do
        [ -d "$left" ] && [ ! -d "/proc/${left##*.}" ] && rm -rf -- "$left"
    done
    return 0
}

drop_temporary() {
    rm -rf -- "$temporary"
}

# Starts a new volume under a temporary name, so that a volume is either whole or not there.
begin_new() {
    [ ! -e "$dir/$1" ] || fail "volume $1 is already in $dir; remove it first, or choose another name"
    make_dir
    sweep
    undo=drop_temporary
    mkdir -- "$temporary" "$temporary/open" ||
        fail "cannot make a folder in $dir; set dir to a place where $(id -un) may write"
    : >"$temporary/lock"
}

finish_new() {
    mv -T -- "$temporary" "$dir/$1" ||
        fail "volume $1 appeared in $dir at the same time; remove it first, or choose another name"
    undo=:
}

# Makes the file $1 $2 bytes long.
extend() {
    if [ "$preallocate" = yes ]; then
        # Not `fallocate --posix`: util-linux 2.38 ends with 0 when that fails.
        fallocate --length "$2" -- "$1" || fail "cannot reserve $2 bytes in $dir," \
            "where $(df --output=avail -B1 -- "$dir" | tail -n 1 | tr -d ' ') are free;" \
            "free some, or set preallocate=no"
    else
        truncate -s "$2" -- "$1" || fail "cannot make $1 $2 bytes long"
    fi
}

# Replaces the file $1 by the text $2 in one step.
write_file() {
    printf '%s\n' "$2" >"${1%/*}/.${1##*/}.new"
    mv -- "${1%/*}/.${1##*/}.new" "$1"
}

# The hosts other than this one that have the volume open in the mode $1 ("exclusive", or "" for any).
open_elsewhere() (
    cd -- "$volume/open" || exit 1
    grep -l "^$1" -- * 2>/dev/null | grep -vxF -- "$host" | tr '\n' ' '
)

# --- Servers ---------------------------------------------------------------------------------------------------------

# The value of a QEMU option: commas are doubled in it.
option() {
    case $1 in
    *,*) printf %s "$1" | sed 's/,/,,/g' ;;
    *) printf %s "$1" ;;
    esac
}

server_address() {
    printf 'addr.type=unix,addr.path=%s,max-connections=0' "$(option "$1")"
}

# The servers among the processes with a matching argument. Their own arguments are the record: a file with a process
# id may be lost, or name a process that got the id later and must not be killed.
servers_with() {
    grep -lz "$@" /proc/[0-9]*/cmdline 2>/dev/null |
        xargs -r grep -lzxE '(.*/)?qemu-storage-daemon' 2>/dev/null | cut -d / -f 3
}

servers() {
    servers_with -F "addr.path=$(option "$run_folder")/nbd"
}

server_at() {
    servers_with -xF "$(server_address "$1")"
}

# Process $1's start time, in clock ticks since boot: together with the id it names one process for ever.
start_time() {
    cut_stat=$(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null) || return 1
    printf '%s\n' "$cut_stat" | cut -d ' ' -f 20
}

# Whether process $1, started at $2, can write no more. A zombie can not, unless a thread of it is left: one that the
# kernel holds in a write lives longer than the process seems to.
has_ended() {
    [ "$(start_time "$1")" = "$2" ] || return 0
    grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null || return 1
    set -- "/proc/$1/task/"*
    [ $# -eq 1 ]
}

all_have_ended() {
    while read -r pid started; do
        has_ended "$pid" "$started" || return 1
    done <"$run_folder/ending"
}

# Ends processes at once and waits until they can write no more. Why not TERM: a stopped process would not act on it.
end_processes() {
    for pid in "$@"; do
        started=$(start_time "$pid") || continue
        echo "$pid $started" >>"$run_folder/ending"
        kill -KILL "$pid" || :
    done
    [ -e "$run_folder/ending" ] || return 0
    within "$END_TIMEOUT_S" all_have_ended ||
        fail "a server of volume $VOL_NAME was killed and is not gone after $END_TIMEOUT_S s (process, start time:" \
            "$(cat "$run_folder/ending")); the storage below $dir may hang; repeat this when it is back"
    rm -f -- "$run_folder/ending"
}

has_no_clients() {
    for socket in "$run_folder"/nbd*.*.sock; do
        [ ! -S "$socket" ] || [ "$(grep -cF " $socket" /proc/net/unix)" -le 1 ] || return 1
    done
}

need_no_clients() {
    within "$RELEASE_TIMEOUT_S" has_no_clients ||
        fail "an NBD server of volume $VOL_NAME still has a client; end it, or cut it off with close, then detach again"
}

end_servers() {
    [ -d "$run_folder" ] || [ -n "$(servers)" ] || return 0
    mkdir -p -- "$run_folder"
    while pids=$(servers) && [ -n "$pids" ]; do
        # shellcheck disable=SC2086  # one word for each process
        end_processes $pids
    done
    end_processes # those that an earlier action has killed and not seen gone
    rm -f -- "$run_folder"/nbd*.sock
}

# Ends servers that a grown volume has left behind, once their last client has gone. /proc/net/unix has a line for the
# listening socket and one for each connection; none at all means a network namespace we cannot see into.
end_idle_servers() {
    for socket in "$run_folder"/nbd*.*.sock; do
        name=${socket##*/}
        if [ "$(readlink "$run_folder/${name%%.*}.sock")" = "$name" ]; then continue; fi
        pids=$(server_at "$socket")
        if [ -n "$pids" ]; then
            [ "$(grep -cF " $socket" /proc/net/unix)" -eq 1 ] || continue
            # shellcheck disable=SC2086  # one word for each process
            end_processes $pids
        fi
        rm -f -- "$socket"
    done
}

# The server shares the file with the loop device and with other servers, hence no image lock and O_DIRECT: without a
# cache of its own each of them sees what the others wrote. With aio=threads, the default, a process that is gone
# has no I/O under way; io_uring may finish some later.
start_server() {
    need_program qemu-storage-daemon qemu-system-common
    # In a session of its own it outlives the caller's process group; the lock and stdout must not be held by it.
    setsid qemu-storage-daemon --daemonize \
        --blockdev "driver=file,node-name=volume,filename=$(option "$data"),cache.direct=on,locking=off,discard=unmap" \
        --nbd-server "$(server_address "$1")" \
        --export "type=nbd,id=volume,node-name=volume,name=$VOL_NAME,writable=on" \
        3>&- 9>&- ||
        fail "qemu-storage-daemon cannot serve $data on $1; its own words are above;" \
            "dir must be on a filesystem that knows O_DIRECT"
}

# Makes the socket link $1 lead to a server of the volume's present size. One that serves an older size stays for its
# clients: a server cannot resize a volume while clients are connected, and to cut them off would be an outage.
serve_nbd() {
    link=$run_folder/$1.sock
    name=$1.$(($(size_of "$data") / MIB)).sock
    if [ -z "$(server_at "$run_folder/$name")" ]; then
        start_server "$run_folder/$name"
    fi
    if [ "$(readlink "$link")" != "$name" ]; then
        ln -sf -- "$name" "$link.new"
        mv -T -- "$link.new" "$link" # in one step: a client finds the old server or the new one
    fi
}

# --- The loop device -------------------------------------------------------------------------------------------------

# Prints this volume's loop device, if there is one. The kernel has the last word on what a device is bound to.
loop_device() {
    [ -e "$run_folder/loop" ] || return 1
    read -r recorded <"$run_folder/loop" || return 1
    bound=$(cat "/sys/block/${recorded#/dev/}/loop/backing_file" 2>/dev/null) || return 1
    real=$(readlink -m -- "$data")
    case $bound in "$real" | "$real (deleted)") echo "$recorded" ;; *) return 1 ;; esac
}

no_loop_device() {
    ! loop_device >/dev/null
}

make_loop_device() {
    need_program losetup util-linux
    attempts=20
    while :; do
        device=$(losetup --find) || fail "there is no free loop device for $data; set path=no to do without one"
        [ -w "$device" ] ||
            fail "$(id -un) may not use the loop device $device; be root, or set path=no to do without one"
        write_file "$run_folder/loop" "$device"
        reason=$(losetup --direct-io=on "$device" "$data" 2>&1) && break
        attempts=$((attempts - 1)) # another process may have been faster to take this device
        [ "$attempts" -gt 0 ] || fail "cannot set up a loop device for $data: $reason"
    done
    [ "$(cat "/sys/block/${device#/dev/}/loop/dio")" = 1 ] || {
        drop_loop_device
        fail "the kernel does not use O_DIRECT for $data, so the loop device and NBD would not show the same bytes;" \
            "dir must be on a filesystem that knows O_DIRECT with the loop device's sector size, or set path=no"
    }
}

serve_path() {
    device=$(loop_device) || make_loop_device
    [ "$(cat "/sys/block/${device#/dev/}/loop/autoclear")" = 0 ] ||
        fail "$device is going away but still open ($(users_of "$device")); end its users, then attach again"
    if [ "$(blockdev --setrw --getsize64 "$device")" != "$(size_of "$data")" ]; then
        losetup --set-capacity "$device"
    fi
}

# Who has the device $1 open, in words; nothing if nobody has.
users_of() {
    {
        find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | cut -d / -f 3 | sort -un | while read -r pid; do
            printf 'process %s %s, ' "$pid" "$(cat "/proc/$pid/comm" 2>/dev/null)"
        done
        claims_of "$1"
    } | sed 's/, $//'
}

# The filesystems mounted from the device $1 and the devices made of it, in words.
claims_of() {
    number=$(cat "/sys/block/${1#/dev/}/dev")
    while read -r _ _ mounted _ where _; do
        [ "$mounted" != "$number" ] || printf 'mounted on %s, ' "$where"
    done </proc/self/mountinfo
    for holder in "/sys/block/${1#/dev/}/holders/"*; do
        [ ! -e "$holder" ] || printf 'part of %s, ' "${holder##*/}"
    done
}

is_unused() {
    [ -z "$(users_of "$1")" ]
}

need_unused_loop_device() {
    device=$(loop_device) || return 0
    within "$RELEASE_TIMEOUT_S" is_unused "$device" ||
        fail "$device of volume $VOL_NAME is still in use ($(users_of "$device")); end its users, then detach again"
}

drop_loop_device() {
    device=$(loop_device) || return 0
    losetup --detach "$device" || :
    within "$RELEASE_TIMEOUT_S" no_loop_device ||
        fail "$device of volume $VOL_NAME is still in use and will go away with its last user;" \
            "end it, then detach again"
    # Linux keeps the mark that fence has put on the device, and its next user would find it read-only.
    blockdev --setrw "$device"
}

no_writes_under_way() {
    read -r _ writes <"/sys/block/${1#/dev/}/inflight" && [ "$writes" = 0 ]
}

# --- Serving, fencing, ending ----------------------------------------------------------------------------------------

state() {
    cat "$run_folder/state" 2>/dev/null || echo detached
}

# Brings up whatever the parameters ask for and is not there, is dead or has an old size. What is there already for
# other parameters is kept up to date too.
serve() {
    mkdir -p -- "$run_folder" ||
        fail "cannot make the folder $run_folder; set run to a place where $(id -un) may write"
    write_file "$run_folder/state" serving
    if [ "$nbd" = yes ] || [ -L "$run_folder/nbd.sock" ]; then
        serve_nbd nbd
    fi
    if [ "$nbd$candidates" = yes2 ] || [ -L "$run_folder/nbd-2.sock" ]; then
        serve_nbd nbd-2
    fi
    if [ "$path" = yes ] || loop_device >/dev/null; then
        serve_path
    fi
    end_idle_servers
}

# Makes sure that nothing can be written through this host any more. The loop device stays, because the path was given
# away, but the kernel refuses writes to it with EPERM, also through descriptors that are open already. It does not
# refuse those of a mounted filesystem or a device-mapper table, so these must be gone.
fence() {
    [ -d "$run_folder" ] || [ -n "$(servers)" ] || return 0
    mkdir -p -- "$run_folder"
    write_file "$run_folder/state" closed
    end_servers
    device=$(loop_device) || return 0
    blockdev --setro "$device" || fail "cannot make $device of volume $VOL_NAME read-only; this needs root"
    blockdev --flushbufs "$device"
    within "$END_TIMEOUT_S" no_writes_under_way "$device" ||
        fail "$device of volume $VOL_NAME still has writes under way after $END_TIMEOUT_S s; repeat this"
    claims=$(claims_of "$device")
    [ -z "$claims" ] || fail "$device of volume $VOL_NAME is ${claims}and could be written through that;" \
        "unmount it or take it apart, then repeat this"
}

is_attached() {
    [ "$(state)" != detached ] || [ -n "$(servers)" ] || loop_device >/dev/null
}

tear_down() {
    end_servers
    drop_loop_device
    rm -rf -- "$run_folder"
}

# Remembers how things are, so that an action that fails leaves the volume as detached, or as fenced, as it was.
keep_state() {
    case $(state) in
    detached) undo=tear_down ;;
    closed) undo=fence ;;
    esac
}

# --- The answer ------------------------------------------------------------------------------------------------------

# $1 as a part of a URI.
percent() (
    rest=$1
    while [ -n "$rest" ]; do
        tail=${rest#?}
        first=${rest%"$tail"}
        case $first in
        [A-Za-z0-9._~/-]) printf %s "$first" ;;
        *) printf '%%%s' "$(printf %s "$first" | od -An -tx1 | tr -d ' \n' | tr '[:lower:]' '[:upper:]')" ;;
        esac
        rest=$tail
    done
)

uri() {
    printf 'kvm:nbd+unix:///%s?socket=%s\n' "$(percent "$VOL_NAME")" "$(percent "$run_folder/$1.sock")"
}

answer() {
    lines=
    if [ "$path" = yes ]; then lines=$device; fi
    if [ "$nbd" = yes ]; then
        lines="$lines
$(uri nbd)"
        [ "$candidates" = 1 ] || lines="$lines
$(uri nbd-2)"
    fi
    printf '%s\n' "$lines" >&3
}
