# What the scripts of the Valkey pods share; they read it with `.`.
#
# From the pod:  SELF           this pod's name, as all others know it
#                HOSTS          all pods' names, with spaces; the first one founds what all of them form
#                PASSWORD_FILE  the one password of servers, replicas and sentinels
#                DATA_DIR, RUN_DIR  the volume, and a folder of this pod's life
# Programs used: sh, coreutils (or busybox), grep, sed, valkey-server, valkey-cli.

PORT=${PORT:-6379}
SENTINEL_PORT=${SENTINEL_PORT:-26379}
MASTER_NAME=${MASTER_NAME:-coffee-rt}
BIND=${BIND:-* -::*}

say() {
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) ${0##*/}: $*"
}

# The password is put into configuration files and addresses as it is.
read_password() {
    password=$(cat "$PASSWORD_FILE")
    case $password in
    '' | *[!A-Za-z0-9._~-]*)
        say "the password must be letters and digits (also . _ ~ -), at least one"
        exit 1
        ;;
    esac
    export VALKEYCLI_AUTH="$password" REDISCLI_AUTH="$password"
}

# The first process of a container is not ended by SIGTERM unless it says so; its pod would stop only by force.
end_when_told() {
    trap 'exit 143' TERM
}

# ask HOST PORT COMMAND...: the answer; fails when there is none or when it is an error.
ask() {
    ask_host=$1 ask_port=$2
    shift 2
    timeout "${ASK_SECONDS:-3}" valkey-cli -e -h "$ask_host" -p "$ask_port" "$@" 2>/dev/null
}

# field NAME: value of `NAME:value` among the lines of an INFO on stdin.
field() {
    sed -n "s/^$1:\([^[:cntrl:]]*\).*/\1/p"
}

# Position of a host in HOSTS, from 0.
ordinal_of() {
    position=0
    for each in $HOSTS; do
        [ "$each" = "$1" ] && break
        position=$((position + 1))
    done
    echo "$position"
}
