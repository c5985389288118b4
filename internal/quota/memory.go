package quota

import (
	"sync"

	"k8s.io/apimachinery/pkg/util/resourceversion"
	toolscache "k8s.io/client-go/tools/cache"

	"batchtask.dev/operator/api/v1alpha1"
)

// memory holds the newest state that this process knows of each namespace's
// ledger: what it has written itself or a watch has told. There can always be a
// newer one, so nothing may rest on it but a write that carries its
// resourceVersion.
type memory struct {
	mu      sync.Mutex
	ledgers map[string]*v1alpha1.TaskQuota // by namespace; never changed in place
}

// keep takes a state, unless a newer one is known. Nobody may change it any more.
func (m *memory) keep(quota *v1alpha1.TaskQuota) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.ledgers[quota.Namespace]; known != nil {
		if order, err := resourceversion.CompareResourceVersion(quota.ResourceVersion, known.ResourceVersion); err == nil && order <= 0 {
			return
		}
	}
	if m.ledgers == nil {
		m.ledgers = map[string]*v1alpha1.TaskQuota{}
	}
	m.ledgers[quota.Namespace] = quota
}

// recall returns a copy of the newest state, or nil if none is known.
func (m *memory) recall(namespace string) *v1alpha1.TaskQuota {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledgers[namespace].DeepCopy()
}

func (m *memory) drop(namespace string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ledgers, namespace)
}

// saw takes note of a state of a ledger, which nobody may change any more.
func (l *Ledger) saw(quota *v1alpha1.TaskQuota) {
	l.reservations.met(quota)
	l.memory.keep(quota)
}

// Watching returns what is to be told of every change that a watch on TaskQuotas
// sees. Without it each ledger that another process has written costs a refused
// write, and nothing else changes.
func (l *Ledger) Watching() toolscache.ResourceEventHandler {
	seen := func(obj any) {
		if quota, ok := obj.(*v1alpha1.TaskQuota); ok {
			l.saw(quota)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    seen,
		UpdateFunc: func(_, obj any) { seen(obj) },
		DeleteFunc: func(obj any) {
			if key, err := toolscache.DeletionHandlingObjectToName(obj); err == nil {
				l.memory.drop(key.Namespace)
			}
		},
	}
}
