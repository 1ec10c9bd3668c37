module k3s9p

go 1.26
