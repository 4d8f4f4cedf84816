# Writes an invite for the hospital $1, once. It is good for one enrolment within 24 hours.
set -eu
cd /handover
[ ! -e invite ] || exit 0
umask 077
fedplat silo invite "$1" >invite.new
mv invite.new invite
echo "an invite for $1 lies in the volume that only its site and the server's see"
