module k3s9p/build/toy

go 1.26

require example.com/lib v1.0.0
