module batchtask.dev/operator/test/clients/go

go 1.26.0

require github.com/tencentcloud/tencentcloud-sdk-go v1.0.162
