# Makes the database's password, once: for PostgreSQL a file with it, for the server one in the form of libpq.
set -eu
cd /run/secrets
[ ! -e pgpass ] || exit 0
umask 077
password=$(python -c 'import secrets; print(secrets.token_urlsafe(24))')
printf %s "$password" >password
chmod 444 password # another user reads it; the volume is mounted into the two that need it
echo "database:5432:fedplat:fedplat:$password" >pgpass.new
mv pgpass.new pgpass
