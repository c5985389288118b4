package kube

import (
	"slices"
	"strconv"
	"sync"
	"time"
	"unique"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
)

// index holds the names of all devices in memory. An informer feeds it, one event
// after the other, while tasks read it.
//
// It goes by its own record of what each object was, not by the old object of an
// event: an object that is deleted and made anew while the watch is down comes as
// one update, and the last state of one whose deletion was missed can be stale.
type index struct {
	mu         sync.Mutex
	namespaces map[string]*namespaceIndex
	seen       uint64 // the highest resourceVersion of any event
	// acknowledged is how many devices have acknowledged each task, as their objects say.
	acknowledged map[taskUID]int64
	// gone has, of each task that was asked for, what is not in acknowledged any more.
	gone    map[taskUID]*gone
	changed chan struct{} // closed at the next event; nil while nobody waits
}

// taskUID is the UID of a task, which many devices share.
type taskUID = unique.Handle[string]

// gone is how many devices had acknowledged a task, and were deleted since or have
// forgotten it.
type gone struct {
	devices int64
	asked   time.Time // the last time
}

// goneFor is for how long nobody may ask for a task before what is gone of it is
// forgotten: longer than anybody waits.
const goneFor = 7 * 24 * time.Hour

type namespaceIndex struct {
	objects  map[string]*entry // by metadata.name
	products map[string]*productIndex
}

type productIndex struct {
	id string
	// devices has, by device name, the object that counts; behind it, over next, those
	// that would count without it.
	devices map[string]*entry
	// sorted are the names of the enabled devices. It is made when it is asked for
	// and stale, and then never changed, so that it can be read without the lock and
	// many changes between two reads cost one sort.
	sorted []string
	stale  bool
}

// entry is one Device object.
type entry struct {
	object   string // metadata.name
	device   string // spec.deviceName
	uid      types.UID
	product  *productIndex
	next     *entry
	created  int64  // Unix seconds
	version  uint64 // metadata.resourceVersion
	disabled bool
	// acknowledged are the tasks that the device has acknowledged.
	acknowledged []taskUID
}

func newIndex() *index {
	return &index{namespaces: map[string]*namespaceIndex{}, acknowledged: map[taskUID]int64{}, gone: map[taskUID]*gone{}}
}

var _ toolscache.ResourceEventHandler = (*index)(nil)

// OnAdd takes a new object from the informer.
func (x *index) OnAdd(obj any, _ bool) { x.put(obj) }

// OnUpdate takes a changed object from the informer.
func (x *index) OnUpdate(_, obj any) { x.put(obj) }

// OnDelete takes a deleted object from the informer.
func (x *index) OnDelete(obj any) {
	if tombstone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
		// The informer found the object missing when it listed anew. It does not know
		// the last state, nor the resourceVersion of the deletion.
		namespace, name, err := toolscache.SplitMetaNamespaceKey(tombstone.Key)
		if err == nil {
			x.delete(namespace, name, 0)
		}
		return
	}
	if device, ok := obj.(*v1alpha1.Device); ok {
		x.delete(device.Namespace, device.Name, parseVersion(device.ResourceVersion))
	}
}

func (x *index) put(obj any) {
	device, ok := obj.(*v1alpha1.Device)
	if !ok {
		return
	}
	version := parseVersion(device.ResourceVersion)
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.happenedLocked(version)

	namespace := x.namespaces[device.Namespace]
	if namespace == nil {
		namespace = &namespaceIndex{objects: map[string]*entry{}, products: map[string]*productIndex{}}
		x.namespaces[device.Namespace] = namespace
	}
	var acknowledged []taskUID
	if known := namespace.objects[device.Name]; known != nil {
		if known.uid == device.UID && known.disabled == device.Spec.Disabled &&
			known.device == device.Spec.DeviceName && known.product.id == device.Spec.ProductID {
			// Most updates are of the shadow.
			known.version = version
			x.acknowledgeLocked(known, device)
			return
		}
		if known.uid == device.UID { // what it has acknowledged is its own
			namespace.remove(known)
			acknowledged = known.acknowledged
		} else {
			x.removeLocked(namespace, known)
		}
	}
	e := &entry{
		object:   device.Name,
		device:   device.Spec.DeviceName,
		uid:      device.UID,
		created:  device.CreationTimestamp.Unix(),
		version:  version,
		disabled: device.Spec.Disabled,

		acknowledged: acknowledged,
	}
	namespace.insert(e, device.Spec.ProductID)
	x.acknowledgeLocked(e, device)
}

// acknowledgeLocked counts what a device has acknowledged, in the place of what was
// counted of it before.
func (x *index) acknowledgeLocked(e *entry, device *v1alpha1.Device) {
	var now []taskUID
	if s := acknowledgedAlone(device.Status.Shadow); s != nil {
		now = make([]taskUID, len(s.AppliedTasks))
		for i, uid := range s.AppliedTasks {
			now[i] = unique.Make(uid)
		}
	}
	if slices.Equal(e.acknowledged, now) {
		return
	}
	for _, uid := range e.acknowledged {
		if x.acknowledged[uid]--; x.acknowledged[uid] == 0 {
			delete(x.acknowledged, uid)
		}
		if g := x.gone[uid]; g != nil && !slices.Contains(now, uid) {
			g.devices++
		}
	}
	for _, uid := range now {
		x.acknowledged[uid]++
	}
	e.acknowledged = now
}

func (x *index) removeLocked(n *namespaceIndex, e *entry) {
	x.acknowledgeLocked(e, &v1alpha1.Device{})
	n.remove(e)
}

// acknowledgedBy returns how many devices have acknowledged each of these tasks. From then
// on what is gone is counted too.
func (x *index) acknowledgedBy(taskUIDs []string, now time.Time) map[string]fleet.Acknowledged {
	x.mu.Lock()
	defer x.mu.Unlock()
	counts := make(map[string]fleet.Acknowledged, len(taskUIDs))
	for _, name := range taskUIDs {
		uid := unique.Make(name)
		g := x.gone[uid]
		if g == nil {
			g = &gone{}
			x.gone[uid] = g
		}
		g.asked = now
		if n := (fleet.Acknowledged{Devices: x.acknowledged[uid], Gone: g.devices}); n.Devices+n.Gone > 0 {
			counts[name] = n
		}
	}
	for uid, g := range x.gone {
		if now.Sub(g.asked) > goneFor {
			delete(x.gone, uid)
		}
	}
	return counts
}

func (x *index) delete(namespaceName, object string, version uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.happenedLocked(version)

	namespace := x.namespaces[namespaceName]
	if namespace == nil {
		return
	}
	if known := namespace.objects[object]; known != nil {
		x.removeLocked(namespace, known)
	}
	if len(namespace.objects) == 0 {
		delete(x.namespaces, namespaceName)
	}
}

// happenedLocked notes an event and wakes those who wait for one.
func (x *index) happenedLocked(version uint64) {
	x.seen = max(x.seen, version)
	if x.changed != nil {
		close(x.changed)
		x.changed = nil
	}
}

func (n *namespaceIndex) insert(e *entry, productID string) {
	product := n.products[productID]
	if product == nil {
		product = &productIndex{id: productID, devices: map[string]*entry{}}
		n.products[productID] = product
	}
	e.product = product
	n.objects[e.object] = e

	first := product.devices[e.device]
	if first == nil || older(e, first) {
		e.next = first
		product.devices[e.device] = e
	} else {
		before := first
		for before.next != nil && older(before.next, e) {
			before = before.next
		}
		e.next, before.next = before.next, e
	}
	product.stale = true
}

func (n *namespaceIndex) remove(e *entry) {
	delete(n.objects, e.object)
	product := e.product
	if first := product.devices[e.device]; first == e {
		if e.next != nil {
			product.devices[e.device] = e.next
		} else {
			delete(product.devices, e.device)
		}
	} else {
		before := first
		for before.next != e {
			before = before.next
		}
		before.next = e.next
	}
	product.stale = true
	if len(product.devices) == 0 {
		delete(n.products, product.id)
	}
}

// older reports whether a counts before b: the older one, and of two of the same
// second the one with the smaller UID.
func older(a, b *entry) bool {
	if a.created != b.created {
		return a.created < b.created
	}
	return a.uid < b.uid
}

func (x *index) productLocked(p fleet.Product) *productIndex {
	namespace := x.namespaces[p.Namespace]
	if namespace == nil {
		return nil
	}
	return namespace.products[p.ProductID]
}

// enabled returns the names of the enabled devices of a product, sorted by byte.
// They must not be changed.
func (x *index) enabled(p fleet.Product) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	product := x.productLocked(p)
	if product == nil {
		return nil
	}
	if product.stale {
		names := make([]string, 0, len(product.devices))
		for name, e := range product.devices {
			if !e.disabled {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		product.sorted, product.stale = names, false
	}
	return product.sorted
}

// total returns how many devices a product has.
func (x *index) total(p fleet.Product) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	product := x.productLocked(p)
	if product == nil {
		return 0
	}
	return int64(len(product.devices))
}

// object returns the name and UID of the object that counts for a device.
func (x *index) object(p fleet.Product, device string) (name string, uid types.UID, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	product := x.productLocked(p)
	if product == nil {
		return "", "", false
	}
	e := product.devices[device]
	if e == nil {
		return "", "", false
	}
	return e.object, e.uid, true
}

// next returns a channel that is closed at the next event.
func (x *index) next() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.changed == nil {
		x.changed = make(chan struct{})
	}
	return x.changed
}

// parseVersion reads a resourceVersion, which is a number that grows with each
// write of the resource (Kubernetes API concepts, resource versions). It returns 0,
// which no object has, for one that cannot be read.
func parseVersion(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
