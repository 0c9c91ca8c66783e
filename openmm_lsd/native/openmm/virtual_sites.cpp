#include "virtual_sites.h"

#include <string>

namespace {

template <class Site>
bool copySite(const OpenMM::VirtualSite& site, OpenMM::System& to, int particle) {
    const auto* original = dynamic_cast<const Site*>(&site);
    if (original != nullptr)
        to.setVirtualSite(particle, new Site(*original));
    return original != nullptr;
}

} // namespace

void copyVirtualSites(const OpenMM::System& from, OpenMM::System& to) {
    using namespace OpenMM;
    for (int i = 0; i < from.getNumParticles(); i++) {
        if (!from.isVirtualSite(i))
            continue;
        const VirtualSite& site = from.getVirtualSite(i);
        if (!copySite<TwoParticleAverageSite>(site, to, i) &&
            !copySite<ThreeParticleAverageSite>(site, to, i) &&
            !copySite<OutOfPlaneSite>(site, to, i) &&
            !copySite<LocalCoordinatesSite>(site, to, i) && !copySite<SymmetrySite>(site, to, i))
            throw OpenMMException("particle " + std::to_string(i) +
                                  " is a virtual site of a kind that openmm_lsd does not know");
    }
}
