#!/bin/bash
# Sets the hostname of this board.
if [ $# -ne 1 ]; then
    echo "usage: sudo pynq_hostname.sh NAME"
    exit 1
fi
current=$(cat /etc/hostname)
sed -i "s/$current/$1/g" /etc/hosts
echo "$1" > /etc/hostname
hostname "$1"
