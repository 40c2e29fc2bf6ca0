module example.invalid/cluster

go 1.26.0

require github.com/cert-manager/cert-manager v1.17.2
