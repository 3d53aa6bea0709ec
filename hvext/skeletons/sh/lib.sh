# shellcheck shell=sh
# What the scripts of the provider @NAME@ share: every script reads this first, and then calls begin.
#
# A volume is a folder DIR/VOL_NAME with the file data, which a loop device makes a block device. Put your own storage
# in the places marked with HERE.

set -eu        # a command that fails ends the script, and is the script's failure
umask 077      # volumes are nobody else's
exec 3>&1 1>&2 # stdout belongs to attach's answer, which is printed to descriptor 3; all other output goes to stderr

action=${0##*/}

# Every failure ends here: a message for people on stderr, and a status that is not 0.
fail() {
    printf '@NAME@: %s: %s\n' "$action" "$*" >&2
    exit 1
}

# Parameters of the disk are in EXTP_ variables, each with its default here. Describe new ones in parameters.list.
read_parameters() {
    dir=${EXTP_DIR:-/var/lib/@NAME@} # HERE
    case $dir in /*) ;; *) fail "the parameter dir is '$dir'; it must be an absolute path" ;; esac
    dir=$(realpath --canonicalize-missing -- "$dir") # one folder, however it is spelt
}

# A volume's name comes from outside: check it before it becomes a path.
check_name() {
    case $1 in '' | .* | */*) fail "'$1' cannot be the name of a volume" ;; esac
}

# Called by every script but verify. The lock makes scripts of this provider wait for each other: Ganeti runs several at
# once, and whoever was interrupted runs them again.
begin() {
    read_parameters
    check_name "${VOL_NAME:-}"
    volume=$dir/$VOL_NAME
    data=$volume/data
    mkdir -p -- "$dir"
    exec 9>"$dir/.lock"
    flock -w 60 9 || fail "another script of this provider has held $dir/.lock for 60 s"
}

need_volume() {
    [ -e "$data" ] || fail "there is no volume $VOL_NAME in $dir"
}

# Sizes are in MiB; $1 is the variable's name, for the message, and $2 its value.
bytes() {
    case $2 in '' | 0* | *[!0-9]*) fail "$1 is '$2'; it must be a number of MiB" ;; esac
    echo $(($2 * 1048576))
}

# Prints the volume's block device, or nothing. What is attached, the kernel knows: a file of our own could be wrong
# after a reboot. HERE: ask your storage (rbd showmapped, iscsiadm -m session, multipath -ll).
device_of() {
    losetup --noheadings --output NAME --associated "$1" | tr -d ' ' | head -n 1
}

# Prints who has the device $1 open, or has mounted it; nothing if nobody has. HERE: for storage that is served, look for
# the connections of the server (ss -x, or what the storage says of its clients).
users_of() {
    {
        find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | cut -d / -f 3 | sort -un | sed 's/^/process /'
        grep -F "$1 " /proc/mounts | cut -d ' ' -f 2 | sed 's/^/the mount /'
    } | paste -s -d , -
}

# Makes a file of $2 bytes beside $1. It gets its name when it is whole: a script that is killed leaves no half volume.
make_data() {
    mkdir -p -- "$(dirname -- "$1")"
    rm -f -- "$1.new"
    truncate --size "$2" -- "$1.new" # HERE
}
