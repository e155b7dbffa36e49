#!/bin/busybox sh
# What a guest of the demonstration does; its part is in $part, from the kernel's command line. Modules are loaded above.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
for module in /modules/*; do insmod "$module" || echo "failed: $module"; done

# The power button: whatever comes from an input device ends the guest as its owner wants it ended.
off() {
    echo "asked to shut down"
    kill $worker 2> /dev/null
    wait $worker
    umount /data && echo "unmounted"
    poweroff -f
}
trap off USR1
for input in /dev/input/event*; do (head -c 24 "$input" > /dev/null && kill -USR1 1) & done

[ "$part" = panics ] && { echo c > /proc/sysrq-trigger; }
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up || echo "failed: network"
mount -t ext4 /dev/vda /data || { echo "failed: mount"; poweroff -f; }
mkdir -p /data/www /run/www

# Rows are n and the guest's clock, one a line; what was found at this boot is told before anything is added.
database() {
    touch /data/rows
    awk '$1 != NR { bad = NR } END { print NR, bad + 0 }' /data/rows > /run/www/found
    echo "found $(cat /run/www/found)"
    n=$(cut -d ' ' -f 1 /run/www/found)
    stop=
    trap 'stop=1' TERM
    while [ -z "$stop" ]; do
        n=$((n + 1))
        read -r up _ < /proc/uptime
        # A row counts once it is on the disk for certain.
        echo "$n $up" | dd of=/data/rows oflag=append conv=notrunc,fsync 2> /dev/null && echo "$n" > /run/www/newest
    done
    echo "stopped after $n"
}
website() {
    echo "boot" >> /data/boots
    echo "<h1>page of $(wc -l < /data/boots) boots</h1>" > /data/www/index.html
    sync
    cp /data/www/index.html /run/www/index.html
    stop=
    trap 'stop=1' TERM
    while [ -z "$stop" ]; do sleep 1; done
}
case $part in
    db) database & ;;
    *) website & ;;
esac
worker=$!
httpd -p 80 -h /run/www
echo "serving"
while :; do sleep 1; done
