#!/bin/sh
# Dumps Slurm's accounting database before apt unpacks another slurmdbd: its first start converts the tables for good.
# apt hands over the archives on standard input, a line each (apt.conf(5), Pre-Install-Pkgs).
set -eu
grep -q '/slurmdbd_[^/]*\.deb$' || exit 0
version=$(dpkg-query --show --showformat='${Version}' slurmdbd 2>/dev/null) || exit 0
command -v mariadb-dump >/dev/null || exit 0
if ! found=$(mariadb --batch --execute="SHOW DATABASES LIKE 'slurm_acct_db'"); then
    echo "labrack: MariaDB does not answer, so Slurm's accounting can't be dumped before its upgrade: start mariadb" >&2
    exit 1
fi
[ -n "$found" ] || exit 0
umask 077
mkdir -p /var/backups/labrack
file=/var/backups/labrack/slurm_acct_db-$version-$(date +%Y%m%dT%H%M%S).sql.gz
mariadb-dump --single-transaction slurm_acct_db >"$file.part"
gzip --stdout "$file.part" >"$file"
rm "$file.part"
echo "labrack: the accounting database is dumped to $file"
