package kube

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/uuid"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/namefilter"
)

const benchDevices = 50_000

var benchProduct = fleet.Product{Namespace: "ns", ProductID: "ABCDE12345"}

// benchObject is a device as it is after StripDevice, with strings of its own, as
// decoded ones have.
func benchObject(i int) *v1alpha1.Device {
	name := fmt.Sprintf("device-%08d", i)
	return object(strings.Clone(name), "ABCDE12345", name, string(uuid.NewUUID()), 1700000000, i+1, false)
}

func benchStore(n int) *Store {
	synced := make(chan struct{})
	close(synced)
	s := &Store{index: newIndex(), synced: synced}
	for i := range n {
		s.index.OnAdd(benchObject(i), true)
	}
	return s
}

// BenchmarkIndexMemory gives the heap that one device takes: in the index, its
// strings included, and in the informer's cache, which has the same strings.
func BenchmarkIndexMemory(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		s := benchStore(benchDevices)
		s.index.enabled(benchProduct)
		index := heap()
		cached := make(map[string]*v1alpha1.Device, benchDevices)
		for i := range benchDevices {
			device := benchObject(i)
			cached[device.Namespace+"/"+device.Name] = device
		}
		both := heap()
		b.ReportMetric(float64(index-before)/benchDevices, "index-B/device")
		b.ReportMetric(float64(both-index)/benchDevices, "cache-B/device")
		runtime.KeepAlive(s)
		runtime.KeepAlive(cached)
	}
}

func BenchmarkScanPage(b *testing.B) {
	s := benchStore(benchDevices)
	filters := map[string]*namefilter.Filter{
		"all":       nil,
		"dotstar":   namefilter.MustParse(`.*`),
		"one-in-10": namefilter.MustParse(`0$`),
		"none":      namefilter.MustParse(`door$`),
	}
	for name, filter := range filters {
		b.Run(name, func(b *testing.B) {
			q := fleet.Query{Product: benchProduct, Filter: filter, After: "device-00020000"}
			for b.Loop() {
				if _, _, err := s.Scan(b.Context(), q, 500); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkScanPageAfterChange is the worst case: a device came since the last page.
func BenchmarkScanPageAfterChange(b *testing.B) {
	s := benchStore(benchDevices)
	q := fleet.Query{Product: benchProduct, After: "device-00020000"}
	next := benchDevices
	for b.Loop() {
		s.index.OnAdd(benchObject(next), false)
		next++
		if _, _, err := s.Scan(b.Context(), q, 500); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyDesired gives the time for one device, against a real API server
// and etcd on the same machine.
func BenchmarkApplyDesired(b *testing.B) {
	h := newHarness(b)
	p := h.Product(b)
	devices := numbered(1000)
	h.Create(b, p, devices...)
	if err := h.store.Sync(b.Context(), p.Namespace); err != nil {
		b.Fatal(err)
	}
	names := make([]string, len(devices))
	for i := range devices {
		names[i] = devices[i].Name
	}
	u, applied := update, 0
	for b.Loop() {
		u.TaskUID = string(uuid.NewUUID())
		for i, result := range h.store.ApplyDesired(b.Context(), p, u, names) {
			if result.Err != nil {
				b.Fatalf("%s: %v", names[i], result.Err)
			}
		}
		applied += len(names)
	}
	b.ReportMetric(float64(applied)/b.Elapsed().Seconds(), "devices/s")
}
