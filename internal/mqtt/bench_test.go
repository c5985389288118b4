package mqtt

import (
	"fmt"
	"testing"
	"time"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// BenchmarkPublish publishes to mosquitto on the same machine and reports messages per second:
//
//	go test -run '^$' -bench Publish -benchtime 300000x ./internal/mqtt
func BenchmarkPublish(b *testing.B) {
	for _, connections := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			broker := mqtttest.StartMosquitto(b)
			p := startPool(b, Options{URL: broker.URL(), Connections: connections})
			g := newGroup("task", b.N)
			b.ReportAllocs()
			b.ResetTimer()
			g.publish(b, p)
			g.wantAllAcked(b, 10*time.Minute)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}
